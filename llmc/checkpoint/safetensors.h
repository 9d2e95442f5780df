// The safetensors file format (github.com/huggingface/safetensors): the header's length in 8 little-endian
// bytes, a JSON header, and the data part, which is the tensors' bytes.
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

// Opens a file and checks its header without trusting it: lengths, types, shapes against byte counts,
// overlaps, integer overflow. Fails softly if anything is wrong.
bool safetensors_open(SafetensorsFile *file, const char *path, Reason *reason);
void safetensors_close(SafetensorsFile *file);

// The tensor of that name, or NULL.
const Tensor *safetensors_find(const SafetensorsFile *file, const char *name);

// Reads `bytes` bytes of the tensor, beginning at its byte `offset`. False if the file is too short or cannot
// be read.
bool safetensors_read(const SafetensorsFile *file, const Tensor *tensor, size_t offset, void *out,
                      size_t bytes);

// --- writing --------------------------------------------------------------------------------------------

// Everything of a file before its data part, for tensors whose data follow each other in this order: length
// and header, padded with spaces to a multiple of 8 bytes. Sets the tensors' offset and bytes, and *size to
// the number of bytes returned; the caller frees them. metadata is key, value, key, value, …, NULL; or NULL
// for none.
char *safetensors_header(Tensor *tensors, int count, const char *const *metadata, size_t *size);
