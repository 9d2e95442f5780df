// The CUDA stream on which operations are queued, with the handles and workspace that they share; and
// OpScope, which every operation opens: an NVTX range for profilers, a check of launches, and the record for
// profile.h.
#pragma once
#include "base/common.h"
#include "device/ops.h"
#include "device/cuda/cudnn_attention.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

struct Matmul;  // linear.cu
struct Profile; // stream.cu

// Scratch memory for cuBLASLt, sorting and reductions. Operations share it, since they run one after the
// other.
constexpr size_t WORKSPACE_BYTES = (size_t)64 << 20;

struct Stream {
    cudaStream_t cuda;
    int multiprocessors;
    size_t shared_memory; // bytes of shared memory in a multiprocessor
    void *workspace;      // WORKSPACE_BYTES
    cublasLtHandle_t cublaslt;
    Matmul *matmuls;      // list of the matrix products seen so far
    Attention *attention; // cuDNN
    Profile *profile;     // NULL while nothing is recorded
};

void stream_create(Stream *stream, const cudaDeviceProp *properties);
void stream_destroy(Stream *stream);

// Frees stream->matmuls (linear.cu).
void matmuls_free(Stream *stream);

// --- errors ---------------------------------------------------------------------------------------------

// Advice for the user about this error, as "; …"; "" if there is none.
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

// The span of one operation on the stream. `bytes` and `flops` are the bytes it has to move (each input and
// output once) and the arithmetic of its matrix products, for the profile.
struct OpScope {
    Stream *stream;
    const char *name;

    OpScope(Stream *stream, const char *name, double bytes, double flops = 0, OpSize size = {0, 0, 0});
    ~OpScope();
};
