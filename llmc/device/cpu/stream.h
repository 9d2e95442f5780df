// The stream of the CPU: operations run at once, in the call. It only has their number of threads and
// scratch.
#pragma once
#include "device/ops.h"

// Accumulator elements of scratch for each thread. linear.c and attention.c size their tiles to fit.
#define SCRATCH_ELEMENTS (144 * 1024)

// The largest head_dim: with it blocks of attention.c still fit the scratch.
#define HEAD_DIM_MAX (16 * 1024)

struct Stream {
    int threads;
    void *scratch; // A[threads, SCRATCH_ELEMENTS]
};

// The operations, compiled for each storage type from the same source (operations.c).
Ops cpu_ops_float64(void);
Ops cpu_ops_float32(void);
Ops cpu_ops_bfloat16(void);
