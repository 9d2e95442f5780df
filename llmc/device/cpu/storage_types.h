// The types of this compilation: -DSTORAGE=64, 32 or 16 chooses the storage type float64, float32 or
// bfloat16. The operations are compiled once for each.
#pragma once
#include "device/cpu/stream.h"

#include <omp.h>
#include <string.h>

#if STORAGE == 64
typedef double storage_t;
typedef double accumulator_t;
#define STORAGE_TYPE   STORAGE_FLOAT64
#define CPU_NAME(name) cpu_##name##_float64
#elif STORAGE == 32
typedef float storage_t;
typedef float accumulator_t;
#define STORAGE_TYPE   STORAGE_FLOAT32
#define CPU_NAME(name) cpu_##name##_float32
#elif STORAGE == 16
typedef struct {
    uint16_t bits;
} storage_t;
typedef float accumulator_t;
#define STORAGE_TYPE   STORAGE_BFLOAT16
#define CPU_NAME(name) cpu_##name##_bfloat16
#else
#error "compile with -DSTORAGE=64, 32 or 16"
#endif

#if STORAGE == 16
static inline accumulator_t load(const storage_t *in) {
    uint32_t wide = (uint32_t)in->bits << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

// The same as bfloat16_from_float (base/storage.h), without a branch so that loops over it are vectorized.
static inline void store(storage_t *out, accumulator_t value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    uint32_t quiet_nan = bits >> 16 | 0x40u;
    out->bits = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}
#else
static inline accumulator_t load(const storage_t *in) {
    return *in;
}
static inline void store(storage_t *out, accumulator_t value) {
    *out = value;
}
#endif

// The scratch A[SCRATCH_ELEMENTS] of the calling thread, in a parallel loop of num_threads(stream->threads).
static inline accumulator_t *thread_scratch(const Stream *stream) {
    return (accumulator_t *)stream->scratch + (int64_t)omp_get_thread_num() * SCRATCH_ELEMENTS;
}
