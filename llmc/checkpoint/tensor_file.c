#include "checkpoint/tensor_file.h"

#include "checkpoint/directory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool tensor_file_open(SafetensorsFile *file, const char *directory, const char *name, Reason *reason) {
    const Path path = path_below(directory, name);
    Reason cause;
    return safetensors_open(file, path.text, &cause) || fail(reason, "%s: %s", path.text, cause.text);
}

static void shape_text(char text[64], int dims, const int64_t *shape) {
    if (dims == 1)
        snprintf(text, 64, "[%ld]", (long)shape[0]);
    else
        snprintf(text, 64, "[%ld, %ld]", (long)shape[0], (long)shape[1]);
}

bool tensor_file_check(const SafetensorsFile *file, const char *name, StorageType type, int dims,
                       const int64_t *shape, Reason *reason) {
    const Tensor *tensor = safetensors_find(file, name);
    if (!tensor) return fail(reason, "%s has no tensor %s, which this model needs", file->path, name);
    if (tensor->type != type)
        return fail(reason,
                    "%s holds %s as %s, not as %s; a run goes on with the --device and --dtype it began with",
                    file->path, name, storage_name(tensor->type), storage_name(type));
    char found[64], needed[64];
    shape_text(found, tensor->dims, tensor->shape);
    shape_text(needed, dims, shape);
    return !strcmp(found, needed) ||
           fail(reason, "%s holds %s with shape %s; this model needs %s", file->path, name, found, needed);
}

bool tensor_file_load(const SafetensorsFile *file, const char *name, size_t offset, size_t bytes,
                      Device *device, void *memory, Reason *reason) {
    const Tensor *tensor = safetensors_find(file, name);
    void *chunk = malloc(bytes < CHUNK_BYTES ? bytes : CHUNK_BYTES);
    bool good = chunk || fail(reason, "out of host memory: a chunk of %s", file->path);
    for (size_t done = 0; good && done < bytes; done += CHUNK_BYTES) {
        const size_t part = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
        errno = 0;
        good = safetensors_read(file, tensor, offset + done, chunk, part);
        if (good)
            device->upload(device, (char *)memory + done, chunk, part);
        else
            fail(reason, "cannot read %s: %s after %zu bytes: %s", file->path, name, offset + done,
                 errno ? strerror(errno) : "the file ends there");
    }
    free(chunk);
    return good;
}
