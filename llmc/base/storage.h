// The three types in which a device may store weights and activations, and their conversion on the host.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { STORAGE_FLOAT64, STORAGE_FLOAT32, STORAGE_BFLOAT16 } StorageType;

size_t storage_size(StorageType type);       // bytes of an element
const char *storage_name(StorageType type);  // "F64", "F32", "BF16": the names safetensors uses
const char *storage_dtype(StorageType type); // "float64", "float32", "bfloat16": the names Hugging Face uses
// The type that gradients, master weights, moments, statistics and sums are kept in: float64 for float64
// storage, else float32.
StorageType accumulator_type(StorageType storage);

// The address of element `index` of an array of `type`.
static inline void *storage_element(const void *array, StorageType type, int64_t index) {
    return (char *)array + index * (int64_t)storage_size(type);
}

uint16_t bfloat16_from_float(float value); // to nearest, ties to even; NaN stays NaN
float bfloat16_to_float(uint16_t bits);

// Convert `count` elements, each rounded to nearest; bfloat16 values are rounded to float32 first.
void storage_from_double(void *out, StorageType type, const double *in, size_t count);
void storage_to_double(double *out, const void *in, StorageType type, size_t count);

#ifdef __cplusplus
}
#endif
