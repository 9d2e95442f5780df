// Collectives of CPU devices: MPI on host memory. Each operation adds requests to a list; collectives_finish
// waits for all of them.
#include "device/cpu/collectives.h"

#include "parallel/watchdog.h"

#ifdef USE_MPI
#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

// MPI counts in int: longer messages are sent in pieces of this size.
#define PIECE_BYTES ((size_t)1 << 30)

// A reduce-scatter under way receives its result in `sum`, an own buffer; finish copies it to `place`. (MPI's
// in-place variant writes it to the start of the buffer, not to this rank's part.)
typedef struct {
    void *place, *sum;
    size_t bytes;
} PendingSum;

typedef struct {
    Collectives collectives; // first, so that a pointer to it is also one to the whole
    MPI_Request *requests;
    int request_count, request_capacity;
    PendingSum *sums;
    int sum_count, sum_capacity;
    const char *what; // the name of the oldest operation under way
} CpuCollectives;

static CpuCollectives *cpu_collectives(Collectives *collectives) {
    return (CpuCollectives *)collectives;
}

static MPI_Comm group_handle(const Collectives *collectives, GroupKind group) {
    return (MPI_Comm)collectives->communicator->handles[group];
}

static void *grown(void *list, int count, int *capacity, size_t size) {
    if (count < *capacity) return list;
    *capacity = 2 * *capacity + 16;
    list = realloc(list, (size_t)*capacity * size);
    if (!list) fatal("out of host memory: what is under way between processes");
    return list;
}

static MPI_Request *new_request(CpuCollectives *self, const char *what) {
    if (self->request_count == 0) self->what = what;
    self->requests =
        grown(self->requests, self->request_count, &self->request_capacity, sizeof(*self->requests));
    return &self->requests[self->request_count++];
}

static void finish(Collectives *collectives) {
    CpuCollectives *self = cpu_collectives(collectives);
    watchdog_enter(self->what);
    MPI_Waitall(self->request_count, self->requests, MPI_STATUSES_IGNORE);
    watchdog_leave();
    self->request_count = 0;
    for (int i = 0; i < self->sum_count; i++) {
        memcpy(self->sums[i].place, self->sums[i].sum, self->sums[i].bytes);
        free(self->sums[i].sum);
    }
    self->sum_count = 0;
}

static void reduce_scatter(Collectives *collectives, GroupKind group, void *buffer, int64_t count,
                           const char *what) {
    CpuCollectives *self = cpu_collectives(collectives);
    const StorageType type = accumulator_type(collectives->device->ops->storage);
    const size_t bytes = (size_t)count * storage_size(type);
    if (count > INT_MAX) fatal("%s: %ld elements a rank are more than MPI can count", what, (long)count);
    self->sums = grown(self->sums, self->sum_count, &self->sum_capacity, sizeof(*self->sums));
    PendingSum *sum = &self->sums[self->sum_count++];
    *sum = (PendingSum){(char *)buffer + (size_t)collectives->communicator->groups[group].rank * bytes,
                        host_allocate(bytes, 1, what), bytes};
    MPI_Ireduce_scatter_block(buffer, sum->sum, (int)count, type == STORAGE_FLOAT64 ? MPI_DOUBLE : MPI_FLOAT,
                              MPI_SUM, group_handle(collectives, group), new_request(self, what));
}

static void all_gather(Collectives *collectives, GroupKind group, void *buffer, size_t bytes,
                       const char *what) {
    finish(collectives); // a reduce-scatter of the same memory may be under way
    if (bytes > INT_MAX) fatal("%s: %zu bytes a rank are more than MPI can count", what, bytes);
    MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, buffer, (int)bytes, MPI_BYTE,
                   group_handle(collectives, group), new_request(cpu_collectives(collectives), what));
}

static void exchange(Collectives *collectives, GroupKind group, const Message *sends, int send_count,
                     const Message *receives, int receive_count, const char *what) {
    CpuCollectives *self = cpu_collectives(collectives);
    const MPI_Comm handle = group_handle(collectives, group);
    const int tag = 0; // one for all: MPI keeps messages between two ranks in order
    for (int i = 0; i < send_count + receive_count; i++) {
        const bool send = i < send_count;
        const Message *m = send ? &sends[i] : &receives[i - send_count];
        for (size_t done = 0; done < m->bytes; done += PIECE_BYTES) {
            char *piece = (char *)m->memory + done;
            const int bytes = (int)min_size(m->bytes - done, PIECE_BYTES);
            MPI_Request *request = new_request(self, what);
            if (send)
                MPI_Isend(piece, bytes, MPI_BYTE, m->peer, tag, handle, request);
            else
                MPI_Irecv(piece, bytes, MPI_BYTE, m->peer, tag, handle, request);
        }
    }
}

static void destroy(Collectives *collectives) {
    CpuCollectives *self = cpu_collectives(collectives);
    finish(collectives);
    free(self->requests);
    free(self->sums);
    free(self);
}

Collectives *cpu_connect(Device *device, const Communicator *communicator) {
    CpuCollectives *self = host_allocate(1, sizeof(*self), "the collectives");
    self->collectives = (Collectives){.device = device,
                                      .communicator = communicator,
                                      .reduce_scatter = reduce_scatter,
                                      .all_gather = all_gather,
                                      .exchange = exchange,
                                      .finish = finish,
                                      .destroy = destroy};
    return &self->collectives;
}

#else

Collectives *cpu_connect(Device *device, const Communicator *communicator) {
    (void)device;
    fatal("%d processes, but this program was built without MPI (USE_MPI=0)", communicator->size);
}

#endif
