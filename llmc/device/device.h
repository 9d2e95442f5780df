// A device: memory, one stream, and the operations that run on it. The CPU is one, each CUDA GPU is one.
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
    int alignment;    // the rows of matrices and head_dim must be multiples of this, in elements
    int host_sharers; // processes of this host, which have equal shares of its memory; 1 if not set otherwise
    bool on_host;     // the device's memory is the host's
    double peak_flops; // dense FLOP/s of its matrix units in the storage type, by its datasheet; 0: not known

    // Whether the operations support this shape; if not, the reason is one line for the user. Limits of
    // Lighthouse attention are checked by SelectionOps.supported.
    bool (*supports)(const Device *device, const DecoderShape *shape, Reason *reason);

    // Memory of `bytes` (> 0), aligned to 256 bytes, contents undefined; NULL if there is not enough.
    void *(*allocate)(Device *device, size_t bytes);
    void (*release)(Device *device, void *memory);
    // Copy from host to device and from device to host, in order with the stream's operations. Each returns
    // when the caller may use the host memory again.
    void (*upload)(Device *device, void *device_memory, const void *host_memory, size_t bytes);
    void (*download)(Device *device, void *host_memory, const void *device_memory, size_t bytes);
    // Sets `bytes` bytes to zero, queued on the stream.
    void (*zero)(Device *device, void *memory, size_t bytes);
    // Waits for everything queued; fails with a message if any of it failed.
    void (*synchronize)(Device *device);
    // The device's free memory now, and its total memory; of the host's, this process's share.
    void (*memory)(Device *device, size_t *free_bytes, size_t *total_bytes);
    // Connects the devices of all processes, which call this together. Called by collectives_create if there
    // is more than one.
    Collectives *(*connect)(Device *device, const Communicator *communicator);
    void (*destroy)(Device *device);
};

// The CPU, with operations compiled for the given storage type. Never fails.
Device *cpu_device_create(StorageType storage);

// How many CUDA GPUs this process sees: 0 in a build without CUDA, without a driver, or without a GPU.
int cuda_device_count(void);

// CUDA GPU number `index` (from 0), with storage type bfloat16. Ends the process with a message if the GPU
// cannot be used, or in a build without CUDA.
Device *cuda_device_create(int index);

#ifdef __cplusplus
}
#endif
