// A CUDA GPU as a device: memory, transfers, the stream, and the operations.
#include "device/device.h"
#include "device/cuda/collectives.cuh"
#include "device/cuda/limits.cuh"
#include "device/cuda/operations.cuh"
#include "device/cuda/profile.h"
#include "device/cuda/vector.cuh"

#include <stdlib.h>
#include <string.h>

// Transfers alternate between two pinned buffers: while the GPU copies one, the host fills or empties the
// other.
constexpr size_t STAGING_BYTES = (size_t)16 << 20;

struct Staging {
    void *memory;
    cudaEvent_t copied; // the GPU has read or written the buffer
};

struct CudaDevice {
    Device device; // first, so that a pointer to it is also one to the whole
    Stream stream;
    Ops ops;
    Staging staging[2];
};

static CudaDevice *cuda_device(Device *device) {
    return (CudaDevice *)device;
}

// --- limits ---------------------------------------------------------------------------------------------

static bool cuda_supports(const Device *, const DecoderShape *shape, Reason *reason) {
    const int head_dim_max = shape->head_dim % 16 == 0 ? HEAD_DIM_MAX : UNEVEN_HEAD_DIM_MAX;
    if (shape->head_dim > head_dim_max)
        return fail(
            reason,
            "--dim %ld / --heads %ld gives heads of %ld values: a CUDA device takes at most %d, or %d of a "
            "multiple of 16",
            (long)shape->dim, (long)shape->heads, (long)shape->head_dim, UNEVEN_HEAD_DIM_MAX, HEAD_DIM_MAX);
    if (shape->dim > DIM_MAX)
        return fail(reason, "--dim %ld is more than CUDA devices take: at most %ld", (long)shape->dim,
                    (long)DIM_MAX);
    if (shape->batch > BATCH_MAX)
        return fail(reason, "--batch-size %ld is more than CUDA devices take: at most %ld",
                    (long)shape->batch, (long)BATCH_MAX);
    return true;
}

// --- memory ---------------------------------------------------------------------------------------------

static void *cuda_allocate(Device *, size_t bytes) {
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); // clears the error: the next CUDA_CHECK must not report it
        return NULL;
    }
    CUDA_CHECK(error);
    return memory;
}

static void cuda_release(Device *, void *memory) {
    CUDA_CHECK(cudaFree(memory));
}

// Copies with several threads: one core is slower than the bus to the GPU.
static void copy_parallel(void *to, const void *from, size_t bytes) {
    const size_t piece = (size_t)1 << 20;
    const int64_t pieces = divide_up((int64_t)bytes, (int64_t)piece);
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (int64_t i = 0; i < pieces; i++) {
        const size_t start = (size_t)i * piece;
        memcpy((char *)to + start, (const char *)from + start, min_size(piece, bytes - start));
    }
}

static size_t staged_bytes(size_t offset, size_t bytes) {
    return min_size(bytes - offset, STAGING_BYTES);
}

static void cuda_upload(Device *device, void *device_memory, const void *host_memory, size_t bytes) {
    CudaDevice *self = cuda_device(device);
    for (size_t offset = 0, turn = 0; offset < bytes; offset += STAGING_BYTES, turn++) {
        const size_t piece = staged_bytes(offset, bytes);
        Staging *staging = &self->staging[turn % 2];
        CUDA_CHECK(cudaEventSynchronize(staging->copied));
        copy_parallel(staging->memory, (const char *)host_memory + offset, piece);
        CUDA_CHECK(cudaMemcpyAsync((char *)device_memory + offset, staging->memory, piece,
                                   cudaMemcpyHostToDevice, self->stream.cuda));
        CUDA_CHECK(cudaEventRecord(staging->copied, self->stream.cuda));
    }
}

static void cuda_download(Device *device, void *host_memory, const void *device_memory, size_t bytes) {
    CudaDevice *self = cuda_device(device);
    // Each iteration starts the copy of one piece and then empties the one before; a last one only empties.
    for (size_t offset = 0, turn = 0; offset < bytes + STAGING_BYTES; offset += STAGING_BYTES, turn++) {
        if (offset < bytes) {
            Staging *staging = &self->staging[turn % 2];
            CUDA_CHECK(cudaMemcpyAsync(staging->memory, (const char *)device_memory + offset,
                                       staged_bytes(offset, bytes), cudaMemcpyDeviceToHost,
                                       self->stream.cuda));
            CUDA_CHECK(cudaEventRecord(staging->copied, self->stream.cuda));
        }
        if (turn > 0 && offset - STAGING_BYTES < bytes) {
            const size_t before = offset - STAGING_BYTES;
            Staging *staging = &self->staging[(turn - 1) % 2];
            CUDA_CHECK(cudaEventSynchronize(staging->copied));
            copy_parallel((char *)host_memory + before, staging->memory, staged_bytes(before, bytes));
        }
    }
}

static void cuda_zero(Device *device, void *memory, size_t bytes) {
    CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, device->stream->cuda));
}

static void cuda_synchronize(Device *device) {
    CUDA_CHECK(cudaStreamSynchronize(device->stream->cuda));
}

static void cuda_memory(Device *, size_t *free_bytes, size_t *total_bytes) {
    CUDA_CHECK(cudaMemGetInfo(free_bytes, total_bytes));
}

// --- the device -----------------------------------------------------------------------------------------

// Dense bfloat16 FLOP/s by the datasheets, of the longest entry that `name` begins with; 0 if there is none.
static double peak_flops(const char *name) {
    static const struct {
        const char *name;
        double flops;
    } gpus[] = {
        {"NVIDIA A100", 312e12},     {"NVIDIA H100", 989e12},  {"NVIDIA H100 PCIe", 756e12},
        {"NVIDIA H100 NVL", 835e12}, {"NVIDIA H200", 989e12},  {"NVIDIA H200 NVL", 835e12},
        {"NVIDIA GH200", 989e12},    {"NVIDIA B200", 2250e12},
    };
    double flops = 0;
    size_t longest = 0;
    for (size_t i = 0; i < COUNT_OF(gpus); i++) {
        const size_t length = strlen(gpus[i].name);
        if (length > longest && !strncmp(name, gpus[i].name, length)) {
            longest = length;
            flops = gpus[i].flops;
        }
    }
    return flops;
}

// A kernel for check_gpu to test: whether it can be loaded shows whether the program was built for this GPU.
static __global__ void any_kernel() {}

static void check_gpu(int index, const cudaDeviceProp *properties) {
    if (properties->major < 8)
        fatal("GPU %d, %s, has compute capability %d.%d: bfloat16 arithmetic needs 8.0 (A100) or newer",
              index, properties->name, properties->major, properties->minor);
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, any_kernel) != cudaSuccess)
        fatal("GPU %d, %s, has compute capability %d.%d, and this program was built for others (%s): rebuild "
              "it with make GPU_ARCH=sm_%d%d",
              index, properties->name, properties->major, properties->minor,
              cudaGetErrorString(cudaGetLastError()), properties->major, properties->minor);
}

static Ops all_operations() {
    return {.storage = STORAGE_BFLOAT16,
            .embedding = cuda_embedding,
            .rmsnorm = cuda_rmsnorm,
            .linear = cuda_linear,
            .rope = cuda_rope,
            .attention = cuda_attention,
            .selection = cuda_selection,
            .gather = cuda_gather,
            .scatter = cuda_scatter,
            .swiglu = cuda_swiglu,
            .loss = cuda_loss,
            .reduce = cuda_reduce,
            .convert = cuda_convert,
            .optimizer = cuda_optimizer};
}

static void cuda_destroy(Device *device) {
    CudaDevice *self = cuda_device(device);
    cuda_synchronize(device);
    if (self->stream.profile) {
        int count;
        free(cuda_profile_stop(device, &count));
    }
    for (Staging &staging : self->staging) {
        CUDA_CHECK(cudaFreeHost(staging.memory));
        CUDA_CHECK(cudaEventDestroy(staging.copied));
    }
    stream_destroy(&self->stream);
    free(self);
}

int cuda_device_count(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();
    return 0;
}

Device *cuda_device_create(int index) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess)
        fatal("no CUDA GPU can be used: %s%s", cudaGetErrorString(error), cuda_hint(error));
    if (index < 0 || index >= count)
        fatal("there is no CUDA GPU %d: this process sees %d, numbered from 0", index, count);
    cudaDeviceProp properties;
    CUDA_CHECK(cudaSetDevice(index));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    check_gpu(index, &properties);

    CudaDevice *self = (CudaDevice *)host_allocate(1, sizeof(CudaDevice), "the device");
    stream_create(&self->stream, &properties);
    for (Staging &staging : self->staging) {
        CUDA_CHECK(cudaMallocHost(&staging.memory, STAGING_BYTES));
        CUDA_CHECK(cudaEventCreateWithFlags(&staging.copied, cudaEventDisableTiming));
    }
    Device *device = &self->device;
    device->kind = "cuda";
    snprintf(device->name, sizeof(device->name), "%s", properties.name);
    self->ops = all_operations();
    device->ops = &self->ops;
    device->stream = &self->stream;
    device->peak_flops = peak_flops(properties.name);
    device->alignment = WIDTH;
    device->host_sharers = 1;
    device->supports = cuda_supports;
    device->allocate = cuda_allocate;
    device->release = cuda_release;
    device->upload = cuda_upload;
    device->download = cuda_download;
    device->zero = cuda_zero;
    device->synchronize = cuda_synchronize;
    device->memory = cuda_memory;
    device->connect = cuda_connect;
    device->destroy = cuda_destroy;
    return device;
}
