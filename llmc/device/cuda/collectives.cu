// Collectives of CUDA devices: NCCL, on one stream for all groups, which runs beside the device's stream.
#include "device/cuda/collectives.cuh"
#include "parallel/watchdog.h"
#include "device/cuda/stream.cuh"

#include <nccl.h>
#include <nvtx3/nvToolsExt.h>
#include <pthread.h>

// A queued operation, which the watchdog observes until it has ended.
struct Queued {
    cudaEvent_t begun, ended;
    const char *what;
};

constexpr int QUEUED_MAX = 256; // operations that are observed; with more under way the oldest are not

struct CudaCollectives {
    Collectives collectives; // first, so that a pointer to it is also one to the whole
    int gpu;
    cudaStream_t stream;
    cudaEvent_t device_reached, stream_reached; // one stream waits for these points of the other
    ncclComm_t comms[GROUPS];                   // NULL for GROUP_DATA and for groups of one rank
    pthread_mutex_t lock;                       // guards queued, first and end
    Queued queued[QUEUED_MAX];
    uint64_t first, end; // operations [first, end), numbered from the run's start, may be under way
    uint64_t seen;       // `first` at the watchdog's last look
    double seen_seconds; // for how long the watchdog has seen the same operation run
    double held_seconds; // for how long the lock has kept the watchdog from looking
    char trouble[256];
};

static CudaCollectives *cuda_collectives(Collectives *collectives) {
    return (CudaCollectives *)collectives;
}

static void nccl_check(ncclResult_t result, const char *what, const char *file, int line) {
    if (result == ncclSuccess) return;
    fatal("NCCL: %s failed at %s:%d: %s; %s", what, file, line, ncclGetErrorString(result),
          ncclGetLastError(NULL));
}

#define NCCL_CHECK(call) nccl_check((call), #call, __FILE__, __LINE__)

// --- the queue ------------------------------------------------------------------------------------------

// The span of one operation: makes it wait for the device's stream, and records it for the watchdog.
struct QueueScope {
    CudaCollectives *self;
    Queued *entry;

    QueueScope(CudaCollectives *self, const char *what) : self(self) {
        nvtxRangePushA(what);
        CUDA_CHECK(cudaEventRecord(self->device_reached, self->collectives.device->stream->cuda));
        CUDA_CHECK(cudaStreamWaitEvent(self->stream, self->device_reached, 0));
        pthread_mutex_lock(&self->lock);
        entry = &self->queued[self->end % QUEUED_MAX];
        entry->what = what;
        CUDA_CHECK(cudaEventRecord(entry->begun, self->stream));
    }

    ~QueueScope() {
        CUDA_CHECK(cudaEventRecord(entry->ended, self->stream));
        self->end++;
        if (self->end - self->first > QUEUED_MAX) self->first = self->end - QUEUED_MAX;
        pthread_mutex_unlock(&self->lock);
        nvtxRangePop();
    }
};

static void finish(Collectives *collectives) {
    CudaCollectives *self = cuda_collectives(collectives);
    CUDA_CHECK(cudaEventRecord(self->stream_reached, self->stream));
    CUDA_CHECK(cudaStreamWaitEvent(collectives->device->stream->cuda, self->stream_reached, 0));
}

// --- operations -----------------------------------------------------------------------------------------

static void reduce_scatter(Collectives *collectives, GroupKind group, void *buffer, int64_t count,
                           const char *what) {
    CudaCollectives *self = cuda_collectives(collectives);
    QueueScope scope(self, what);
    float *part = (float *)buffer + collectives->communicator->groups[group].rank * count;
    NCCL_CHECK(
        ncclReduceScatter(buffer, part, (size_t)count, ncclFloat, ncclSum, self->comms[group], self->stream));
}

static void all_gather(Collectives *collectives, GroupKind group, void *buffer, size_t bytes,
                       const char *what) {
    CudaCollectives *self = cuda_collectives(collectives);
    QueueScope scope(self, what);
    const char *part = (char *)buffer + (size_t)collectives->communicator->groups[group].rank * bytes;
    NCCL_CHECK(ncclAllGather(part, buffer, bytes, ncclInt8, self->comms[group], self->stream));
}

static void exchange(Collectives *collectives, GroupKind group, const Message *sends, int send_count,
                     const Message *receives, int receive_count, const char *what) {
    CudaCollectives *self = cuda_collectives(collectives);
    QueueScope scope(self, what);
    NCCL_CHECK(ncclGroupStart());
    for (int i = 0; i < send_count; i++)
        NCCL_CHECK(ncclSend(sends[i].memory, sends[i].bytes, ncclInt8, sends[i].peer, self->comms[group],
                            self->stream));
    for (int i = 0; i < receive_count; i++)
        NCCL_CHECK(ncclRecv(receives[i].memory, receives[i].bytes, ncclInt8, receives[i].peer,
                            self->comms[group], self->stream));
    NCCL_CHECK(ncclGroupEnd());
}

// --- watching -------------------------------------------------------------------------------------------

// Returns a message if the oldest operation under way has been running beyond the deadline, else NULL.
static const char *look_at_queue(CudaCollectives *self, double deadline) {
    while (self->first < self->end &&
           cudaEventQuery(self->queued[self->first % QUEUED_MAX].ended) == cudaSuccess)
        self->first++;
    const Queued *oldest = &self->queued[self->first % QUEUED_MAX];
    const bool waits = self->first < self->end && cudaEventQuery(oldest->begun) == cudaSuccess;
    self->seen_seconds =
        waits && self->first == self->seen ? self->seen_seconds + 1 : 0; // called once a second
    self->seen = self->first;
    if (self->seen_seconds <= deadline) return NULL;
    snprintf(self->trouble, sizeof(self->trouble),
             "stuck: waiting for other ranks for %.0f seconds in: %s (--collective-timeout %.0f)",
             self->seen_seconds, oldest->what, deadline);
    return self->trouble;
}

static const char *look(void *context, double deadline) {
    CudaCollectives *self = (CudaCollectives *)context;
    cudaSetDevice(self->gpu); // each thread has a current GPU of its own
    for (int group = 0; group < GROUPS; group++) {
        ncclResult_t result = ncclSuccess;
        if (self->comms[group]) ncclCommGetAsyncError(self->comms[group], &result);
        if (result == ncclSuccess || result == ncclInProgress) continue;
        snprintf(self->trouble, sizeof(self->trouble), "NCCL: %s; %s", ncclGetErrorString(result),
                 ncclGetLastError(NULL));
        return self->trouble;
    }
    // While the lock is held an operation is being queued, and in that NCCL itself may wait for other ranks.
    if (pthread_mutex_trylock(&self->lock) != 0) {
        if (++self->held_seconds <= deadline) return NULL;
        snprintf(self->trouble, sizeof(self->trouble),
                 "stuck: queueing an operation between ranks for %.0f seconds (--collective-timeout %.0f)",
                 self->held_seconds, deadline);
        return self->trouble;
    }
    self->held_seconds = 0;
    const char *trouble = look_at_queue(self, deadline);
    pthread_mutex_unlock(&self->lock);
    return trouble;
}

// --- making and ending ----------------------------------------------------------------------------------

static void create_comms(CudaCollectives *self, const Communicator *communicator, ncclUniqueId id) {
    NCCL_CHECK(ncclCommInitRank(&self->comms[GROUP_WORLD], communicator->size, id, communicator->rank));
    const Group context = communicator->groups[GROUP_CONTEXT];
    if (context.size > 1)
        NCCL_CHECK(ncclCommSplit(self->comms[GROUP_WORLD], communicator->groups[GROUP_DATA].rank,
                                 context.rank, &self->comms[GROUP_CONTEXT], NULL));
}

// Runs each kind of operation once: NCCL allocates a connection's memory when it is first used. That must
// come before the memory plan is compared with the free memory.
static void connect_all(Collectives *collectives) {
    const Communicator *communicator = collectives->communicator;
    const size_t bytes = (size_t)1 << 20;
    char *buffer;
    CUDA_CHECK(cudaMalloc(&buffer, bytes * (size_t)communicator->size));
    CUDA_CHECK(cudaMemset(buffer, 0, bytes * (size_t)communicator->size));
    reduce_scatter(collectives, GROUP_WORLD, buffer, (int64_t)(bytes / sizeof(float)), "starting NCCL");
    all_gather(collectives, GROUP_WORLD, buffer, bytes, "starting NCCL");
    const Group context = communicator->groups[GROUP_CONTEXT];
    if (context.size > 1) {
        const int next = (context.rank + 1) % context.size,
                  previous = (context.rank + context.size - 1) % context.size;
        const Message sends[] = {{buffer, bytes / 2, next}, {buffer, bytes / 2, previous}};
        const Message receives[] = {{buffer + bytes, bytes / 2, previous},
                                    {buffer + bytes + bytes / 2, bytes / 2, next}};
        exchange(collectives, GROUP_CONTEXT, sends, 2, receives, 2, "starting NCCL");
    }
    CUDA_CHECK(cudaStreamSynchronize(cuda_collectives(collectives)->stream));
    CUDA_CHECK(cudaFree(buffer));
}

static void destroy(Collectives *collectives) {
    CudaCollectives *self = cuda_collectives(collectives);
    CUDA_CHECK(cudaStreamSynchronize(self->stream));
    for (int group = GROUPS - 1; group >= 0; group--)
        if (self->comms[group]) NCCL_CHECK(ncclCommDestroy(self->comms[group]));
    for (Queued &queued : self->queued) {
        CUDA_CHECK(cudaEventDestroy(queued.begun));
        CUDA_CHECK(cudaEventDestroy(queued.ended));
    }
    CUDA_CHECK(cudaEventDestroy(self->device_reached));
    CUDA_CHECK(cudaEventDestroy(self->stream_reached));
    CUDA_CHECK(cudaStreamDestroy(self->stream));
    pthread_mutex_destroy(&self->lock);
    free(self);
}

Collectives *cuda_connect(Device *device, const Communicator *communicator) {
    CudaCollectives *self = (CudaCollectives *)host_allocate(1, sizeof(CudaCollectives), "the collectives");
    Collectives *collectives = &self->collectives;
    collectives->device = device;
    collectives->communicator = communicator;
    collectives->reduce_scatter = reduce_scatter;
    collectives->all_gather = all_gather;
    collectives->exchange = exchange;
    collectives->finish = finish;
    collectives->look = look;
    collectives->destroy = destroy;
    pthread_mutex_init(&self->lock, NULL);
    CUDA_CHECK(cudaGetDevice(&self->gpu));
    // Higher priority than the device's stream: transfers must not wait for the attention that hides them.
    int least, greatest;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CUDA_CHECK(cudaStreamCreateWithPriority(&self->stream, cudaStreamNonBlocking, greatest));
    CUDA_CHECK(cudaEventCreateWithFlags(&self->device_reached, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&self->stream_reached, cudaEventDisableTiming));
    for (Queued &queued : self->queued) {
        CUDA_CHECK(cudaEventCreateWithFlags(&queued.begun, cudaEventDisableTiming));
        CUDA_CHECK(cudaEventCreateWithFlags(&queued.ended, cudaEventDisableTiming));
    }
    ncclUniqueId id = {};
    if (communicator->rank == 0) NCCL_CHECK(ncclGetUniqueId(&id));
    communicator_broadcast(communicator, &id, sizeof(id), "starting NCCL");
    watchdog_enter("starting NCCL");
    create_comms(self, communicator, id);
    connect_all(collectives);
    watchdog_leave();
    return collectives;
}
