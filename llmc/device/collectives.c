#include "device/collectives.h"

#include <assert.h>
#include <stdlib.h>

void collectives_deterministic(void) {
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    setenv("NCCL_COLLNET_ENABLE", "0", 0);
}

Collectives *collectives_create(Device *device, const Communicator *communicator) {
    if (communicator->size > 1) return device->connect(device, communicator);
    Collectives *alone = host_allocate(1, sizeof(Collectives), "the collectives");
    alone->device = device;
    alone->communicator = communicator;
    return alone;
}

void collectives_destroy(Collectives *collectives) {
    if (collectives->destroy)
        collectives->destroy(collectives);
    else
        free(collectives);
}

static bool is_alone(const Collectives *collectives, GroupKind group) {
    assert(group == GROUP_WORLD || group == GROUP_CONTEXT);
    return collectives->communicator->groups[group].size == 1;
}

void collectives_reduce_scatter(Collectives *collectives, GroupKind group, void *buffer, int64_t count,
                                const char *what) {
    if (!is_alone(collectives, group)) collectives->reduce_scatter(collectives, group, buffer, count, what);
}

void collectives_all_gather(Collectives *collectives, GroupKind group, void *buffer, size_t bytes,
                            const char *what) {
    if (!is_alone(collectives, group)) collectives->all_gather(collectives, group, buffer, bytes, what);
}

void collectives_exchange(Collectives *collectives, GroupKind group, const Message *sends, int send_count,
                          const Message *receives, int receive_count, const char *what) {
    if (!is_alone(collectives, group))
        collectives->exchange(collectives, group, sends, send_count, receives, receive_count, what);
}

void collectives_finish(Collectives *collectives) {
    if (collectives->finish) collectives->finish(collectives);
}
