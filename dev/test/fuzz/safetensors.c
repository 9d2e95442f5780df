// Opens a safetensors file with the input as its contents. If it is accepted, every tensor must lie inside
// the file and be readable.
#include "harness.h"

#include "checkpoint/safetensors.h"

#include <stdlib.h>
#include <string.h>

static void add_seed(int argc, char **argv, const char *name, int count, const char *const *metadata) {
    Tensor tensors[] = {{.name = "a", .type = STORAGE_FLOAT32, .dims = 2, .shape = {2, 3}, .count = 6},
                        {.name = "b", .type = STORAGE_BFLOAT16, .dims = 1, .shape = {4}, .count = 4},
                        {.name = "c\"\\", .type = STORAGE_FLOAT64, .dims = 1, .shape = {1}, .count = 1}};
    size_t size;
    char *header = safetensors_header(tensors, count, metadata, &size);
    const size_t bytes = count > 0 ? tensors[count - 1].offset + tensors[count - 1].bytes : 0;
    char *whole = host_allocate(size + bytes, 1, "a seed");
    memcpy(whole, header, size);
    seed_corpus(argc, argv, name, whole, size + bytes);
    free(whole);
    free(header);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    add_seed(*argc, *argv, "none", 0, NULL);
    add_seed(*argc, *argv, "one", 1, NULL);
    add_seed(*argc, *argv, "all", 3, (const char *const[]){"format", "pt", "first", "0,17", NULL});
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    SafetensorsFile file;
    Reason reason = {""};
    if (!safetensors_open(&file, memory_file(data, bytes), &reason)) {
        if (!reason.text[0] || strchr(reason.text, '\n')) abort();
        return 0;
    }
    for (int i = 0; i < file.count; i++) {
        const Tensor *tensor = &file.tensors[i];
        if (tensor->bytes > bytes || tensor->offset > bytes - tensor->bytes) abort();
        if ((size_t)tensor->count * storage_size(tensor->type) != tensor->bytes) abort();
        if (safetensors_find(&file, tensor->name) != tensor) abort();
        char *out = malloc(tensor->bytes + 1);
        if (!safetensors_read(&file, tensor, 0, out, tensor->bytes)) abort();
        if (safetensors_read(&file, tensor, 1, out, tensor->bytes)) abort();
        free(out);
    }
    safetensors_close(&file);
    return 0;
}
