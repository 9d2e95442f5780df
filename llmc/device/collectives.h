// What the devices of several processes exchange: NCCL between CUDA GPUs (llmc/device/cuda/collectives.cu),
// MPI between CPUs (llmc/device/cpu/collectives.c).
//
// An operation runs after everything that was queued on the device's stream before the call, and beside what
// is queued there later; what uses its results must be queued after collectives_finish. Operations run one
// after the other in the order of the calls, which is the same on all ranks: there is one queue for all
// groups, so that no two of them can wait for each other. In a group of one there is nothing to do. `what`
// (kept by address) names the phase, should it not come to an end (llmc/parallel/watchdog.h).
//
// `group` is GROUP_WORLD (gradients, weights) or GROUP_CONTEXT (keys, values, halos). GROUP_DATA only numbers
// the ranks: it has no connection.
#pragma once
#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// Bytes of device memory that go to, or come from, a rank of the group.
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
    const char *(*look)(void *collectives, double seconds); // for the watchdog; NULL: nothing to look at
    void (*destroy)(Collectives *collectives);
};

// All processes call this together, after communicator_divide.
Collectives *collectives_create(Device *device, const Communicator *communicator);
void collectives_destroy(Collectives *collectives);

// buffer A[size · count]: the sum over the ranks of the group, of the part that is this rank's, takes its
// place in the buffer. What the other parts hold then is undefined. The same bits every time.
void collectives_reduce_scatter(Collectives *collectives, GroupKind group, void *buffer, int64_t count,
                                const char *what);

// Each rank's part of buffer, `bytes` long, to all: in place, in rank order.
void collectives_all_gather(Collectives *collectives, GroupKind group, void *buffer, size_t bytes,
                            const char *what);

// Sends and receives together. Several messages from one rank to another (or to itself) are received in the
// order they are listed.
void collectives_exchange(Collectives *collectives, GroupKind group, const Message *sends, int send_count,
                          const Message *receives, int receive_count, const char *what);

// What the device's stream is given from now on sees the results of all operations so far.
void collectives_finish(Collectives *collectives);

#ifdef __cplusplus
}
#endif
