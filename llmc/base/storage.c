#include "base/storage.h"

#include <assert.h>
#include <string.h>

size_t storage_size(StorageType type) {
    switch (type) {
        case STORAGE_FLOAT64: return 8;
        case STORAGE_FLOAT32: return 4;
        case STORAGE_BFLOAT16: return 2;
    }
    assert(!"a storage type without a size");
    return 0;
}

const char *storage_name(StorageType type) {
    return type == STORAGE_FLOAT64 ? "F64" : type == STORAGE_FLOAT32 ? "F32" : "BF16";
}

const char *storage_dtype(StorageType type) {
    return type == STORAGE_FLOAT64 ? "float64" : type == STORAGE_FLOAT32 ? "float32" : "bfloat16";
}

StorageType accumulator_type(StorageType storage) {
    return storage == STORAGE_FLOAT64 ? STORAGE_FLOAT64 : STORAGE_FLOAT32;
}

uint16_t bfloat16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); // NaN: keep it quiet
    uint32_t ties_to_even = 0x7fffu + (bits >> 16 & 1u);
    return (uint16_t)((bits + ties_to_even) >> 16);
}

float bfloat16_to_float(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

void storage_from_double(void *out, StorageType type, const double *in, size_t count) {
    if (type == STORAGE_FLOAT64) memcpy(out, in, count * sizeof(double));
    if (type == STORAGE_FLOAT32)
        for (size_t i = 0; i < count; i++) ((float *)out)[i] = (float)in[i];
    if (type == STORAGE_BFLOAT16)
        for (size_t i = 0; i < count; i++) ((uint16_t *)out)[i] = bfloat16_from_float((float)in[i]);
}

void storage_to_double(double *out, const void *in, StorageType type, size_t count) {
    if (type == STORAGE_FLOAT64) memcpy(out, in, count * sizeof(double));
    if (type == STORAGE_FLOAT32)
        for (size_t i = 0; i < count; i++) out[i] = ((const float *)in)[i];
    if (type == STORAGE_BFLOAT16)
        for (size_t i = 0; i < count; i++) out[i] = bfloat16_to_float(((const uint16_t *)in)[i]);
}
