// The safetensors file format: 8 bytes little-endian header length, a JSON header, the tensors' bytes.
#pragma once
#include "base/reason.h"
#include "base/storage.h"

typedef struct {
    char name[96];
    StorageType type;
    int dims;
    int64_t shape[2];
    int64_t count;        // elements
    size_t offset, bytes; // in the data part
} Tensor;

// --- reading --------------------------------------------------------------------------------------------

typedef struct {
    char *path;
    int descriptor;
    size_t data_start; // in the file
    Tensor *tensors;
    int count;
    char *metadata; // the header's "__metadata__" object as JSON text, or NULL
} SafetensorsFile;

// Opens and checks a file as if its author meant harm: lengths, types, shapes against bytes, overlaps,
// overflow. Fails softly if anything is wrong.
bool safetensors_open(SafetensorsFile *file, const char *path, Reason *reason);
void safetensors_close(SafetensorsFile *file);

// The tensor of that name, or NULL.
const Tensor *safetensors_find(const SafetensorsFile *file, const char *name);

// Reads `bytes` of the tensor from its byte `offset` on. False if the file does not give them.
bool safetensors_read(const SafetensorsFile *file, const Tensor *tensor, size_t offset, void *out,
                      size_t bytes);

// --- writing --------------------------------------------------------------------------------------------

// The header for these tensors, in this order, one after the other from offset 0 (their offset and bytes are
// set here); metadata is a NULL-ended list of key, value, key, value …, or NULL. The whole start of the file,
// padded with spaces to a multiple of 8 bytes; the caller frees it. *size is its length.
char *safetensors_header(Tensor *tensors, int count, const char *const *metadata, size_t *size);
