// Verifies a checkpoint in which one file is the input: the first byte chooses the manifest, trainer.json,
// config.json, or the header of the model or the optimizer file. The manifest has the right hash of that
// file, so that its content is read. The checkpoint must be found good or be refused.
#include "harness.h"

#include "base/files.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/directory.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/json_file.h"
#include "checkpoint/manifest.h"
#include "checkpoint/model_file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MANIFEST, TRAINER, CONFIG, MODEL, OPTIMIZER, KINDS };
static const char *const names[KINDS] = {MANIFEST_FILE, TRAINER_FILE, CONFIG_FILE, MODEL_FILE,
                                         "optimizer-00000-of-00001.safetensors"};

static const StateBuffers optimizer = {.list = {{.name = "master"}, {.name = "m"}, {.name = "v"}},
                                       .count = 3};

static const ModelConfig shape = {5, 4, 1, 1, 1, 3, 10000, 1e-5};
static const char config[] = "{\"vocab_size\":5,\"hidden_size\":4,\"intermediate_size\":3,\"num_hidden_"
                             "layers\":1,\"num_attention_heads\":1,"
                             "\"num_key_value_heads\":1,\"torch_dtype\":\"float32\"}\n";
static const char trainer[] = "{\"format_version\":1,\"step\":4,\"samples\":128,\"skipped\":0,\"guard\":{},"
                              "\"options\":{\"lr\":\"0.002\"}}\n";

static char directory[64] = "/dev/shm/fuzz_json.XXXXXX"; // in memory
static char *headers[KINDS];                             // of model and optimizer file, without length
static size_t header_bytes[KINDS], data_bytes[KINDS];

static Path path_of(int kind) {
    return path_below(directory, names[kind]);
}

static void remove_directory(void) {
    directory_remove(directory);
}

static void make_header(int kind, Tensor *tensors, int count, const char *const *metadata) {
    size_t size;
    char *header = safetensors_header(tensors, count, metadata, &size);
    data_bytes[kind] = tensors[count - 1].offset + tensors[count - 1].bytes;
    header_bytes[kind] = size - 8;
    headers[kind] = host_allocate(header_bytes[kind], 1, "a header");
    memcpy(headers[kind], header + 8, header_bytes[kind]);
    free(header);
}

static void make_headers(void) {
    ParameterTable table = parameter_table_create(&shape, 1);
    Tensor tensors[32] = {0}, flat[MOST_STATE_BUFFERS] = {0};
    for (int i = 0; i < table.count; i++) {
        const Parameter *p = &table.list[i];
        tensors[i] = (Tensor){
            .type = STORAGE_FLOAT32, .dims = p->dims, .shape = {p->shape[0], p->shape[1]}, .count = p->count};
        strcpy(tensors[i].name, p->name);
    }
    make_header(MODEL, tensors, table.count, (const char *const[]){"format", "pt", NULL});
    for (int i = 0; i < optimizer.count; i++) {
        flat[i] =
            (Tensor){.type = STORAGE_FLOAT32, .dims = 1, .shape = {table.elements}, .count = table.elements};
        strcpy(flat[i].name, optimizer.list[i].name);
    }
    char *rest = format_string("8,%ld", (long)table.elements - 8),
         *total = format_string("%ld", (long)table.elements);
    make_header(OPTIMIZER, flat, optimizer.count,
                (const char *const[]){"first", "0,8", "count", rest, "total", total, NULL});
    free(rest);
    free(total);
    parameter_table_free(&table);
}

// Writes the file of this kind: the text itself, or a safetensors file that has it as header.
static void write_file(int kind, const void *text, size_t bytes) {
    if (!headers[kind]) {
        replace_file(path_of(kind).text, text, bytes);
        return;
    }
    char *whole = host_allocate(8 + bytes + data_bytes[kind], 1, "a file");
    for (int i = 0; i < 8; i++) whole[i] = (char)(bytes >> (8 * i) & 0xff);
    memcpy(whole + 8, text, bytes);
    replace_file(path_of(kind).text, whole, 8 + bytes + data_bytes[kind]);
    free(whole);
}

static void write_good(int kind) {
    if (kind == TRAINER) write_file(kind, trainer, strlen(trainer));
    if (kind == CONFIG) write_file(kind, config, strlen(config));
    if (headers[kind]) write_file(kind, headers[kind], header_bytes[kind]);
}

static char *good_manifest(void) {
    Manifest manifest = manifest_create(KINDS);
    for (int kind = TRAINER; kind < KINDS; kind++) {
        ManifestEntry *entry = &manifest.list[manifest.count++];
        FILE *file = fopen(path_of(kind).text, "rb");
        if (!file || !file_hash(path_of(kind).text, entry->hash)) abort();
        fseek(file, 0, SEEK_END);
        entry->bytes = ftell(file);
        strcpy(entry->name, names[kind]);
        fclose(file);
    }
    char *text = manifest_text(&manifest);
    manifest_free(&manifest);
    return text;
}

static void verify(void *unused) {
    (void)unused;
    free(checkpoint_verify(directory, &optimizer));
}

static void add_seed(int argc, char **argv, int kind, const char *text, size_t bytes) {
    char *seed = host_allocate(bytes + 1, 1, "a seed");
    seed[0] = (char)kind;
    memcpy(seed + 1, text, bytes);
    seed_corpus(argc, argv, names[kind], seed, bytes + 1);
    free(seed);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    cJSON_Hooks hooks = {tracked_allocate, tracked_free};
    cJSON_InitHooks(&hooks);
    if (!mkdtemp(directory)) abort();
    atexit(remove_directory);
    make_headers();
    for (int kind = TRAINER; kind < KINDS; kind++) write_good(kind);
    char *manifest = good_manifest();
    write_file(MANIFEST, manifest, strlen(manifest));
    if (!survives(verify, NULL)) abort();
    add_seed(*argc, *argv, MANIFEST, manifest, strlen(manifest));
    add_seed(*argc, *argv, TRAINER, trainer, strlen(trainer));
    add_seed(*argc, *argv, CONFIG, config, strlen(config));
    add_seed(*argc, *argv, MODEL, headers[MODEL], header_bytes[MODEL]);
    add_seed(*argc, *argv, OPTIMIZER, headers[OPTIMIZER], header_bytes[OPTIMIZER]);
    free(manifest);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes == 0 || data[0] >= KINDS) return -1;
    const int kind = data[0];
    write_file(kind, data + 1, bytes - 1);
    if (kind != MANIFEST) {
        char *manifest = good_manifest();
        write_file(MANIFEST, manifest, strlen(manifest));
        free(manifest);
    }
    survives(verify, NULL);
    write_good(kind);
    return 0;
}
