// The stream that operations are queued on, with what they need beside their arguments; and the scope that
// each launcher opens: a named range for profilers, the launch check, and the record for profile.h.
#pragma once
#include "base/common.h"
#include "device/ops.h"
#include "device/cuda/cudnn_attention.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

struct Matmul;  // linear.cu
struct Profile; // stream.cu

// Scratch memory that operations use one after the other, in stream order: cuBLASLt, sorting, reductions.
constexpr size_t WORKSPACE_BYTES = (size_t)64 << 20;

struct Stream {
    cudaStream_t cuda;
    int multiprocessors;
    size_t shared_memory; // bytes of a multiprocessor
    void *workspace;      // WORKSPACE_BYTES
    cublasLtHandle_t cublaslt;
    Matmul *matmuls;      // the matrix products planned so far
    Attention *attention; // cuDNN
    Profile *profile;     // NULL while off
};

void stream_create(Stream *stream, const cudaDeviceProp *properties);
void stream_destroy(Stream *stream);

// Frees stream->matmuls (linear.cu).
void matmuls_free(Stream *stream);

// --- errors ---------------------------------------------------------------------------------------------

// Advice for the user that follows from the error: "; …", or nothing.
const char *cuda_hint(cudaError_t error);

NORETURN void cuda_fail(cudaError_t error, const char *what, const char *file, int line);
NORETURN void cublas_fail(cublasStatus_t status, const char *what, const char *file, int line);

static inline void cuda_check(cudaError_t error, const char *what, const char *file, int line) {
    if (error != cudaSuccess) cuda_fail(error, what, file, line);
}

#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

static inline void cublas_check(cublasStatus_t status, const char *what, const char *file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) cublas_fail(status, what, file, line);
}

#define CUBLAS_CHECK(call) cublas_check((call), #call, __FILE__, __LINE__)

// --- operations -----------------------------------------------------------------------------------------

// Sizes that tell operations of one name apart in the profile; zeros are left out.
struct OpSize {
    int64_t rows, columns, depth;
};

// The span of one operation on the stream. `bytes` and `flops`: what it has to move and compute, by count.
struct OpScope {
    Stream *stream;
    const char *name;

    OpScope(Stream *stream, const char *name, double bytes, double flops = 0, OpSize size = {0, 0, 0});
    ~OpScope();
};
