// A device: memory, one stream, and the operations that run there. The CPU and a CUDA GPU are both one of
// these.
#pragma once
#include "device/ops.h"
#include "parallel/communicator.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Device Device;
typedef struct Collectives Collectives; // collectives.h

struct Device {
    const char *kind; // "cpu" or "cuda"
    char name[256];   // "NVIDIA H200", "AMD EPYC, 2 threads"
    const Ops *ops;
    Stream *stream;
    int alignment;     // matrices' rows and heads are of a multiple of this many elements
    double peak_flops; // dense FLOP/s of its matrix units in the storage type, by its datasheet; 0: not known

    // Whether the operations can do this shape; if not, why, for the user. Lighthouse attention has limits
    // beside these: SelectionOps.supported.
    bool (*supports)(const Device *device, const DecoderShape *shape, Reason *reason);

    // Memory of `bytes` (> 0), aligned to 256 bytes, contents undefined; NULL if there is not enough.
    void *(*allocate)(Device *device, size_t bytes);
    void (*release)(Device *device, void *memory);
    // Host to device and back. Both return when the host memory may be used again; both are in order with the
    // stream's operations.
    void (*upload)(Device *device, void *device_memory, const void *host_memory, size_t bytes);
    void (*download)(Device *device, void *host_memory, const void *device_memory, size_t bytes);
    // Queued on the stream.
    void (*zero)(Device *device, void *memory, size_t bytes);
    // Waits for everything queued; fails with a message if any of it failed.
    void (*synchronize)(Device *device);
    // Bytes free now and bytes in all.
    void (*memory)(Device *device, size_t *free_bytes, size_t *total_bytes);
    // What the devices of this kind exchange, of several processes that all call this together; for
    // collectives_create.
    Collectives *(*connect)(Device *device, const Communicator *communicator);
    void (*destroy)(Device *device);
};

// The CPU with operations in the given storage type. Never fails.
Device *cpu_device_create(StorageType storage);

// How many CUDA GPUs this process sees: 0 in a build without CUDA, without a driver, or without a GPU.
int cuda_device_count(void);

// CUDA GPU number `index`, storage bfloat16. Fails with a message if it cannot be used, or in a build without
// CUDA.
Device *cuda_device_create(int index);

#ifdef __cplusplus
}
#endif
