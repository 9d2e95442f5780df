// Collective operations on device memory: NCCL between CUDA GPUs (llmc/device/cuda/collectives.cu), MPI
// between CPUs (llmc/device/cpu/collectives.c).
//
// An operation runs after everything that was queued on the device's stream before the call, and concurrently
// with work queued there later; work that uses its results must be queued after collectives_finish.
// Operations run one after the other, in the order of the calls, which must be the same on all ranks: one
// queue serves all groups, so that two groups cannot wait for each other. In a group of one rank nothing is
// done. `what` (kept by address) names the operation: the watchdog prints it if the operation hangs
// (llmc/parallel/watchdog.h).
//
// `group` is GROUP_WORLD (gradients, weights) or GROUP_CONTEXT (keys, values, halos), never GROUP_DATA: it
// only numbers the ranks and has no connection.
#pragma once
#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// Bytes of device memory to send to, or receive from, rank `peer` of the group.
typedef struct {
    void *memory;
    size_t bytes;
    int peer;
} Message;

struct Collectives {
    Device *device;
    const Communicator *communicator;
    void (*reduce_scatter)(Collectives *collectives, GroupKind group, void *buffer, int64_t count,
                           const char *what);
    void (*all_gather)(Collectives *collectives, GroupKind group, void *buffer, size_t bytes,
                       const char *what);
    void (*exchange)(Collectives *collectives, GroupKind group, const Message *sends, int send_count,
                     const Message *receives, int receive_count, const char *what);
    void (*finish)(Collectives *collectives);
    const char *(*look)(void *collectives, double seconds); // for watchdog_look; NULL: the device has none
    void (*destroy)(Collectives *collectives);
};

// Keeps NCCL, which chooses by circumstances, from sums inside the network's switches (NVLS, CollNet), whose order is
// not the same every time; unless the user chose by NCCL_NVLS_ENABLE or NCCL_COLLNET_ENABLE. To be called before
// collectives_create.
void collectives_deterministic(void);

// All processes call this together, after communicator_divide. The device and the communicator must outlive
// the collectives.
Collectives *collectives_create(Device *device, const Communicator *communicator);
void collectives_destroy(Collectives *collectives);

// buffer A[size, count] is one part for each rank of the group. Replaces this rank's part by the sum of that
// part over all ranks; the other parts become undefined. Repeated runs give the same bits.
void collectives_reduce_scatter(Collectives *collectives, GroupKind group, void *buffer, int64_t count,
                                const char *what);

// buffer is one part of `bytes` bytes for each rank of the group, in rank order. Every rank contributes its
// own part and receives the others, in place.
void collectives_all_gather(Collectives *collectives, GroupKind group, void *buffer, size_t bytes,
                            const char *what);

// Sends and receives all these messages concurrently. Several messages from one rank to another (or to
// itself) are received in the order in which the sender lists them.
void collectives_exchange(Collectives *collectives, GroupKind group, const Message *sends, int send_count,
                          const Message *receives, int receive_count, const char *what);

// Work queued on the device's stream after this call runs after all operations so far, and sees their
// results.
void collectives_finish(Collectives *collectives);

#ifdef __cplusplus
}
#endif
