// Shared by model file and optimizer files: opens a checkpoint's safetensors file, compares its tensors with
// those that the run needs, and loads them to the device. All these functions fail softly.
#pragma once
#include "checkpoint/safetensors.h"
#include "device/device.h"

#define CHUNK_BYTES ((size_t)16 << 20) // copies between file and device go through a buffer of this size

// The first entry of every file's metadata. It tells Hugging Face's libraries that these are PyTorch tensors.
#define PYTORCH_METADATA "format", "pt"

bool tensor_file_open(SafetensorsFile *file, const char *directory, const char *name, Reason *reason);

// Whether the file has a tensor called `name` of this type and shape [dims].
bool tensor_file_check(const SafetensorsFile *file, const char *name, StorageType type, int dims,
                       const int64_t *shape, Reason *reason);

// Loads bytes [offset, offset + bytes) of the tensor called `name` to device memory.
bool tensor_file_load(const SafetensorsFile *file, const char *name, size_t offset, size_t bytes,
                      Device *device, void *memory, Reason *reason);
