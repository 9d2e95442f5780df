// What an operation on the CPU finds behind its stream: it runs at once, on this many threads, each with
// scratch.
#pragma once
#include "device/ops.h"

// Accumulator elements of scratch for each thread. ops_linear.c and ops_attention.c size their tiles to fit.
#define SCRATCH_ELEMENTS (144 * 1024)

struct Stream {
    int threads;
    void *scratch; // A[threads, SCRATCH_ELEMENTS]
};

// The same source (ops*.c) compiled for each storage type.
extern const Ops cpu_ops_float64, cpu_ops_float32, cpu_ops_bfloat16;
