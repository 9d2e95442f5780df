// What an operation on the CPU finds behind its stream: it runs at once, on this many threads, each with
// scratch.
#pragma once
#include "device/ops.h"

// Accumulator elements of scratch for each thread. linear.c and attention.c size their tiles to fit.
#define SCRATCH_ELEMENTS (144 * 1024)

// Values of the widest head whose blocks attention.c has room for in the scratch.
#define HEAD_DIM_MAX (16 * 1024)

struct Stream {
    int threads;
    void *scratch; // A[threads, SCRATCH_ELEMENTS]
};

// The same source (operations.c and what it names) compiled for each storage type.
Ops cpu_ops_float64(void);
Ops cpu_ops_float32(void);
Ops cpu_ops_bfloat16(void);
