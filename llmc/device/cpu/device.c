// The CPU as a device: host memory, and operations that run at once in the calling thread's OpenMP team.
#include "device/device.h"

#include "base/host_memory.h"
#include "device/cpu/collectives.h"
#include "device/cpu/stream.h"

#include <cblas.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    Device device; // first, so that a pointer to it is also one to the whole
    Stream stream;
    Ops ops;
} CpuDevice;

// Reads the value of `key` from a file of lines "key : value" under /proc. False if the file has no such
// line.
static bool read_proc(const char *path, const char *key, char *value, size_t size) {
    FILE *file = fopen(path, "r");
    if (!file) return false;
    char line[512];
    bool found = false;
    while (!found && fgets(line, sizeof(line), file)) {
        const char *colon = strchr(line, ':');
        found = colon && strncmp(line, key, strlen(key)) == 0;
        if (found) snprintf(value, size, "%.*s", (int)strcspn(colon + 1, "\n") - 1, colon + 2);
    }
    fclose(file);
    return found;
}

static void cpu_memory(Device *device, size_t *free_bytes, size_t *total_bytes) {
    const HostMemory memory = host_memory("");
    *free_bytes = memory.free_bytes / (size_t)device->host_sharers;
    *total_bytes = memory.total_bytes / (size_t)device->host_sharers;
}

static bool cpu_supports(const Device *device, const DecoderShape *shape, Reason *reason) {
    (void)device;
    return shape->head_dim <= HEAD_DIM_MAX ||
           fail(reason, "--dim %ld / --heads %ld gives heads of %ld values: the CPU takes at most %d",
                (long)shape->dim, (long)shape->heads, (long)shape->head_dim, HEAD_DIM_MAX);
}

static void *cpu_allocate(Device *device, size_t bytes) {
    void *memory;
    if (bytes > host_memory("").free_bytes || posix_memalign(&memory, 256, bytes) != 0) return NULL;
    // Linux provides memory when it is first touched. Touching it now makes the reported free memory right.
    const int64_t page = sysconf(_SC_PAGESIZE);
#pragma omp parallel for schedule(static) num_threads(device->stream->threads)
    for (int64_t offset = 0; offset < (int64_t)bytes; offset += page) ((volatile char *)memory)[offset] = 0;
    return memory;
}

static void cpu_release(Device *device, void *memory) {
    (void)device;
    free(memory);
}

static void cpu_upload(Device *device, void *device_memory, const void *host_memory, size_t bytes) {
    (void)device;
    memcpy(device_memory, host_memory, bytes);
}

static void cpu_download(Device *device, void *host_memory, const void *device_memory, size_t bytes) {
    (void)device;
    memcpy(host_memory, device_memory, bytes);
}

static void cpu_zero(Device *device, void *memory, size_t bytes) {
    (void)device;
    memset(memory, 0, bytes);
}

static void cpu_synchronize(Device *device) {
    (void)device;
}

static void cpu_destroy(Device *device) {
    free(device->stream->scratch);
    free(device);
}

static Ops ops_of(StorageType storage) {
    return storage == STORAGE_FLOAT64   ? cpu_ops_float64()
           : storage == STORAGE_FLOAT32 ? cpu_ops_float32()
                                        : cpu_ops_bfloat16();
}

Device *cpu_device_create(StorageType storage) {
    openblas_set_num_threads(1); // OpenMP threads already compute the tiles of a product in parallel
    CpuDevice *self = host_allocate(1, sizeof(*self), "the CPU device");
    Stream *stream = &self->stream;
    stream->threads = omp_get_max_threads();
    stream->scratch =
        host_allocate((size_t)stream->threads * SCRATCH_ELEMENTS, storage_size(accumulator_type(storage)),
                      "the scratch of the CPU's threads");
    self->ops = ops_of(storage);
    Device *device = &self->device;
    *device = (Device){.kind = "cpu",
                       .host_sharers = 1,
                       .on_host = true,
                       .ops = &self->ops,
                       .stream = stream,
                       .alignment = 1,
                       .supports = cpu_supports,
                       .allocate = cpu_allocate,
                       .release = cpu_release,
                       .upload = cpu_upload,
                       .download = cpu_download,
                       .zero = cpu_zero,
                       .synchronize = cpu_synchronize,
                       .memory = cpu_memory,
                       .connect = cpu_connect,
                       .destroy = cpu_destroy};
    char model[200] = "CPU";
    read_proc("/proc/cpuinfo", "model name", model, sizeof(model));
    snprintf(device->name, sizeof(device->name), "%s, %d thread%s", model, stream->threads,
             stream->threads == 1 ? "" : "s");
    return device;
}
