// What model file and optimizer files have in common: safetensors files of a checkpoint, whose tensors are
// compared with what the run needs and brought to its device. All fails softly.
#pragma once
#include "checkpoint/safetensors.h"
#include "device/device.h"

#define CHUNK_BYTES ((size_t)16 << 20) // of a tensor on its way between file and device

// What every file's metadata begins with: its tensors are to be read as PyTorch's.
#define PYTORCH_METADATA "format", "pt"

bool tensor_file_open(SafetensorsFile *file, const char *directory, const char *name, Reason *reason);

// Whether the file has a tensor of that name, of the type and shape that the run needs.
bool tensor_file_check(const SafetensorsFile *file, const char *name, StorageType type, int dims,
                       const int64_t *shape, Reason *reason);

// Brings bytes [offset, offset + bytes) of the tensor of that name to device memory.
bool tensor_file_load(const SafetensorsFile *file, const char *name, size_t offset, size_t bytes,
                      Device *device, void *memory, Reason *reason);
