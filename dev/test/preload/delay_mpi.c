// A slow network that shows what relies on a fast one, for tests: preloaded into a run of several processes
// (LD_PRELOAD), it sleeps at random before and after every MPI call that moves data, and takes MPI at its
// word. What an operation under way receives appears when it is waited for and not before: until then there
// is NaN in its place, which must still be there then. And what it sends must not have changed. Where it
// did, the process says so and all end.
//
//   DELAY_SEED=N      of the random numbers (each rank has its own)
//   DELAY_PERCENT=P   of the times it could sleep it does; 25 if not set
//   DELAY_MOST=US     sleeps at most so long; 2000 microseconds if not set
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

// Programs that this one starts know nothing of MPI.
__attribute__((constructor)) static void end_here(void) {
    unsetenv("LD_PRELOAD");
}

static void delay(void) {
    static unsigned short state[3];
    static int seeded;
    if (!seeded) {
        int rank;
        PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
        const long seed = setting("DELAY_SEED", 0);
        memcpy(state, &seed, sizeof(state));
        state[2] ^= (unsigned short)(rank + 1);
        seeded = 1;
        for (int i = 0; i < 10; i++) nrand48(state); // neighbouring ranks' first numbers are alike
    }
    if (nrand48(state) % 100 < setting("DELAY_PERCENT", 25))
        usleep((useconds_t)(nrand48(state) % (setting("DELAY_MOST", 2000) + 1)));
}

// --- operations under way -------------------------------------------------------------------------------

enum { POISON = 0xff }; // NaN in every type of numbers, and no position that was picked

typedef struct {
    char *memory;
    size_t bytes;
} Range;

// What it sends, and a copy from when it began; what it will have received: so far in a buffer of its own. An
// operation in place has the part that is its own in the middle of what it receives.
typedef struct {
    MPI_Request request;
    const char *what;
    Range sent, received[2];
    char *sent_before, *arriving[2];
    char *buffer; // to be freed
} Pending;

enum { MOST_PENDING = 4096 };
static Pending pending[MOST_PENDING];
static int pending_count;

static void fail(const char *what, const char *how) {
    fprintf(stderr, "error: %s: %s\n", what, how);
    fflush(NULL);
    PMPI_Abort(MPI_COMM_WORLD, 1);
}

static char *allocate(size_t bytes) {
    char *memory = malloc(bytes + 1);
    if (!memory) fail("delay_mpi", "out of memory");
    return memory;
}

static size_t bytes_of(int count, MPI_Datatype type) {
    int size;
    PMPI_Type_size(type, &size);
    return (size_t)count * (size_t)size;
}

static Pending *begin(const char *what, const void *sent, size_t bytes) {
    if (pending_count == MOST_PENDING) fail(what, "too many operations under way");
    Pending *p = &pending[pending_count++];
    *p = (Pending){.what = what, .sent = {(char *)sent, bytes}, .sent_before = allocate(bytes)};
    memcpy(p->sent_before, sent, bytes);
    return p;
}

static void receives(Pending *p, int part, void *memory, size_t bytes, char *arriving) {
    p->received[part] = (Range){memory, bytes};
    p->arriving[part] = arriving;
    memset(memory, POISON, bytes);
}

static void end(Pending *p) {
    if (memcmp(p->sent.memory, p->sent_before, p->sent.bytes) != 0)
        fail(p->what, "what is sent was changed while it was under way");
    for (int part = 0; part < 2; part++) {
        const Range r = p->received[part];
        for (size_t i = 0; i < r.bytes; i++)
            if ((unsigned char)r.memory[i] != POISON)
                fail(p->what, "where something is received was written while it was under way");
        if (r.bytes > 0) memcpy(r.memory, p->arriving[part], r.bytes);
    }
    free(p->sent_before);
    free(p->buffer);
    *p = pending[--pending_count];
}

// --- the calls ------------------------------------------------------------------------------------------

int MPI_Isend(const void *memory, int count, MPI_Datatype type, int to, int tag, MPI_Comm group,
              MPI_Request *request) {
    delay();
    Pending *p = begin("MPI_Isend", memory, bytes_of(count, type));
    const int status = PMPI_Isend(memory, count, type, to, tag, group, request);
    p->request = *request;
    delay();
    return status;
}

int MPI_Irecv(void *memory, int count, MPI_Datatype type, int from, int tag, MPI_Comm group,
              MPI_Request *request) {
    delay();
    const size_t bytes = bytes_of(count, type);
    Pending *p = begin("MPI_Irecv", memory, 0);
    p->buffer = allocate(bytes);
    receives(p, 0, memory, bytes, p->buffer);
    const int status = PMPI_Irecv(p->buffer, count, type, from, tag, group, request);
    p->request = *request;
    delay();
    return status;
}

int MPI_Ireduce_scatter_block(const void *sent, void *received, int count, MPI_Datatype type, MPI_Op op,
                              MPI_Comm group, MPI_Request *request) {
    delay();
    int size;
    PMPI_Comm_size(group, &size);
    const size_t bytes = bytes_of(count, type);
    Pending *p = begin("MPI_Ireduce_scatter_block", sent, bytes * (size_t)size);
    p->buffer = allocate(bytes);
    receives(p, 0, received, bytes, p->buffer);
    const int status = PMPI_Ireduce_scatter_block(sent, p->buffer, count, type, op, group, request);
    p->request = *request;
    delay();
    return status;
}

// In place, as the program calls it.
int MPI_Iallgather(const void *sent, int sent_count, MPI_Datatype sent_type, void *received, int count,
                   MPI_Datatype type, MPI_Comm group, MPI_Request *request) {
    delay();
    int rank, size;
    PMPI_Comm_rank(group, &rank);
    PMPI_Comm_size(group, &size);
    if (sent != MPI_IN_PLACE) fail("MPI_Iallgather", "not in place, which delay_mpi does not know");
    const size_t bytes = bytes_of(count, type), before = bytes * (size_t)rank, all = bytes * (size_t)size;
    char *memory = received;
    Pending *p = begin("MPI_Iallgather", memory + before, bytes);
    p->buffer = allocate(all);
    memcpy(p->buffer + before, memory + before, bytes);
    receives(p, 0, memory, before, p->buffer);
    receives(p, 1, memory + before + bytes, all - before - bytes, p->buffer + before + bytes);
    const int status = PMPI_Iallgather(sent, sent_count, sent_type, p->buffer, count, type, group, request);
    p->request = *request;
    delay();
    return status;
}

int MPI_Waitall(int count, MPI_Request *requests, MPI_Status *statuses) {
    delay();
    MPI_Request *before = (MPI_Request *)allocate((size_t)count * sizeof(*before));
    memcpy(before, requests, (size_t)count * sizeof(*before));
    const int status = PMPI_Waitall(count, requests, statuses);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < pending_count; j++)
            if (pending[j].request == before[i]) {
                end(&pending[j]);
                break;
            }
    free(before);
    delay();
    return status;
}

int MPI_Allgather(const void *sent, int sent_count, MPI_Datatype sent_type, void *received, int count,
                  MPI_Datatype type, MPI_Comm group) {
    delay();
    const int status = PMPI_Allgather(sent, sent_count, sent_type, received, count, type, group);
    delay();
    return status;
}

int MPI_Bcast(void *memory, int count, MPI_Datatype type, int root, MPI_Comm group) {
    delay();
    const int status = PMPI_Bcast(memory, count, type, root, group);
    delay();
    return status;
}
