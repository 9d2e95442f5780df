#include "device/cuda/stream.cuh"
#include "device/cuda/profile.h"

#include <nvtx3/nvToolsExt.h>
#include <stdlib.h>
#include <string.h>

void stream_create(Stream *stream, const cudaDeviceProp *properties) {
    stream->multiprocessors = properties->multiProcessorCount;
    stream->shared_memory = properties->sharedMemPerMultiprocessor;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream->cuda, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc(&stream->workspace, WORKSPACE_BYTES));
    CUBLAS_CHECK(cublasLtCreate(&stream->cublaslt));
    stream->attention = cudnn_attention_create(stream->cuda);
}

void stream_destroy(Stream *stream) {
    matmuls_free(stream);
    cudnn_attention_destroy(stream->attention);
    CUBLAS_CHECK(cublasLtDestroy(stream->cublaslt));
    CUDA_CHECK(cudaFree(stream->workspace));
    CUDA_CHECK(cudaStreamDestroy(stream->cuda));
}

// --- errors ---------------------------------------------------------------------------------------------

const char *cuda_hint(cudaError_t error) {
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

void cuda_fail(cudaError_t error, const char *what, const char *file, int line) {
    fatal("CUDA: %s failed at %s:%d: %s (%s)%s", what, file, line, cudaGetErrorString(error),
          cudaGetErrorName(error), cuda_hint(error));
}

void cublas_fail(cublasStatus_t status, const char *what, const char *file, int line) {
    fatal("cuBLASLt: %s failed at %s:%d: %s", what, file, line, cublasLtGetStatusString(status));
}

// Fails if a kernel of the operation could not be launched: CUDA reports that only through cudaGetLastError.
static void check_launches(const char *operation) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        fatal("CUDA: %s could not be launched: %s (%s)%s", operation, cudaGetErrorString(error),
              cudaGetErrorName(error), cuda_hint(error));
}

// --- operations -----------------------------------------------------------------------------------------

// One recorded operation, between two events.
struct ProfiledOp {
    char name[96];
    double bytes, flops;
    cudaEvent_t begin, end;
};

struct Profile {
    ProfiledOp *ops;
    size_t count, capacity;
};

static ProfiledOp *profile_add(Profile *profile) {
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

OpScope::OpScope(Stream *stream, const char *name, double bytes, double flops, OpSize size)
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

OpScope::~OpScope() {
    check_launches(name);
    if (stream->profile)
        CUDA_CHECK(cudaEventRecord(stream->profile->ops[stream->profile->count - 1].end, stream->cuda));
    nvtxRangePop();
}

// --- profile (profile.h) --------------------------------------------------------------------------------

void cuda_profile_start(Device *device) {
    if (!device->stream->profile)
        device->stream->profile = (Profile *)host_allocate(1, sizeof(Profile), "the profile");
}

static ProfileRow *profile_row(ProfileRow *rows, int *count, const char *name) {
    for (int i = 0; i < *count; i++)
        if (!strcmp(rows[i].name, name)) return &rows[i];
    ProfileRow *row = &rows[(*count)++];
    snprintf(row->name, sizeof(row->name), "%s", name);
    return row;
}

static int compare_rows(const void *a, const void *b) {
    const double x = ((const ProfileRow *)a)->milliseconds, y = ((const ProfileRow *)b)->milliseconds;
    return (x < y) - (x > y);
}

ProfileRow *cuda_profile_stop(Device *device, int *count) {
    Profile *profile = device->stream->profile;
    device->stream->profile = NULL;
    device->synchronize(device);
    ProfileRow *rows = (ProfileRow *)host_allocate(profile->count, sizeof(ProfileRow), "the profile's table");
    *count = 0;
    for (size_t i = 0; i < profile->count; i++) {
        ProfiledOp *op = &profile->ops[i];
        float milliseconds;
        CUDA_CHECK(cudaEventElapsedTime(&milliseconds, op->begin, op->end));
        ProfileRow *row = profile_row(rows, count, op->name);
        row->calls++;
        row->milliseconds += milliseconds;
        row->bytes += op->bytes;
        row->flops += op->flops;
        CUDA_CHECK(cudaEventDestroy(op->begin));
        CUDA_CHECK(cudaEventDestroy(op->end));
    }
    qsort(rows, (size_t)*count, sizeof(ProfileRow), compare_rows);
    free(profile->ops);
    free(profile);
    return rows;
}
