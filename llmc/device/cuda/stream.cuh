// The stream that operations are queued on, with what they need beside their arguments; and the scope that
// each launcher opens: a named range for profilers, the launch check, and the record for profile.h.
#pragma once
#include "base/common.h"
#include "device/ops.h"
#include "device/cuda/cudnn_attention.h"

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>
#include <stdlib.h>

struct Matmul;  // linear.cuh
struct Profile; // below

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

// --- errors ---------------------------------------------------------------------------------------------

static const char *cuda_hint(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation:
            return "; the GPU's memory is full: a smaller batch or sequence needs less";
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorUnsupportedPtxVersion:
            return "; this program was built for other GPUs: rebuild it on this machine, or with make "
                   "GPU_ARCH=sm_XX";
        case cudaErrorInsufficientDriver: return "; install or update the NVIDIA driver";
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchFailure:
        case cudaErrorMisalignedAddress:
            return "; an operation queued before this one failed: CUDA_LAUNCH_BLOCKING=1 in the environment "
                   "shows which";
        default: return "";
    }
}

static inline void cuda_check(cudaError_t error, const char *what, const char *file, int line) {
    if (error == cudaSuccess) return;
    fatal("CUDA: %s failed at %s:%d: %s (%s)%s", what, file, line, cudaGetErrorString(error),
          cudaGetErrorName(error), cuda_hint(error));
}

#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

static inline void cublas_check(cublasStatus_t status, const char *what, const char *file, int line) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fatal("cuBLASLt: %s failed at %s:%d: %s", what, file, line, cublasLtGetStatusString(status));
}

#define CUBLAS_CHECK(call) cublas_check((call), #call, __FILE__, __LINE__)

// --- profile --------------------------------------------------------------------------------------------

// One operation as it was queued.
struct ProfiledOp {
    char name[96];
    double bytes, flops;
    cudaEvent_t begin, end;
};

struct Profile {
    ProfiledOp *ops;
    size_t count, capacity;
};

static inline ProfiledOp *profile_add(Profile *profile) {
    if (profile->count == profile->capacity) {
        size_t capacity = profile->capacity > 0 ? 2 * profile->capacity : 1024;
        ProfiledOp *ops = (ProfiledOp *)host_allocate(capacity, sizeof(ProfiledOp), "the profile");
        for (size_t i = 0; i < profile->count; i++) ops[i] = profile->ops[i];
        free(profile->ops);
        profile->ops = ops;
        profile->capacity = capacity;
    }
    ProfiledOp *op = &profile->ops[profile->count++];
    CUDA_CHECK(cudaEventCreate(&op->begin));
    CUDA_CHECK(cudaEventCreate(&op->end));
    return op;
}

// Sizes that tell operations of one name apart in the profile; zeros are left out.
struct OpSize {
    int64_t rows, columns, depth;
};

// The span of one operation on the stream. `bytes` and `flops`: what it has to move and compute, by count.
struct OpScope {
    Stream *stream;
    const char *name;

    OpScope(Stream *stream, const char *name, double bytes, double flops = 0, OpSize size = {0, 0, 0})
        : stream(stream), name(name) {
        nvtxRangePushA(name);
        if (!stream->profile) return;
        ProfiledOp *op = profile_add(stream->profile);
        op->bytes = bytes;
        op->flops = flops;
        if (size.rows > 0)
            snprintf(op->name, sizeof(op->name), "%s %ldx%ldx%ld", name, (long)size.rows, (long)size.columns,
                     (long)size.depth);
        else
            snprintf(op->name, sizeof(op->name), "%s", name);
        CUDA_CHECK(cudaEventRecord(op->begin, stream->cuda));
    }

    ~OpScope() {
        cuda_check(cudaGetLastError(), name, "its launch", 0);
        if (stream->profile)
            CUDA_CHECK(cudaEventRecord(stream->profile->ops[stream->profile->count - 1].end, stream->cuda));
        nvtxRangePop();
    }
};
