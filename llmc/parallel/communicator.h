// The processes of a run, the groups they form, and communication of host memory between them. Device memory
// is communicated by llmc/device/collectives.h.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// GROUP_CONTEXT: processes that hold different parts of the same sequences; their ranks are consecutive.
// GROUP_DATA: processes that hold the same parts of different sequences.
typedef enum { GROUP_WORLD, GROUP_DATA, GROUP_CONTEXT, GROUPS } GroupKind;

// This process's place in a group.
typedef struct {
    int rank, size;
} Group;

typedef struct {
    int rank, size;             // in the world
    int local_rank, local_size; // among the processes of this host
    Group groups[GROUPS];       // data and context groups have one rank until communicator_divide
    void *handles[GROUPS];      // MPI_Comm; NULL for GROUP_DATA, within which nothing is communicated
} Communicator;

// Starts MPI if mpirun or srun started this process; else the world is this process alone. With several
// ranks, from this call on only rank 0 prints to standard output, errors and warnings name the rank, and a
// process that fails before communicator_destroy ends all others.
Communicator communicator_create(int *argc, char ***argv);

// Divides the ranks into context groups of `context_size`, which must divide the world's size. Ranks with the
// same place in their context groups form the data groups.
void communicator_divide(Communicator *communicator, int context_size);

void communicator_destroy(Communicator *communicator);

// --- between hosts: all processes call these together, in the same order ---------------------------------
// `what` (kept by address) names the purpose: the watchdog prints it if the call hangs (parallel/watchdog.h).
// NULL: the call may take as long as it likes.

// Returns when all processes have called it.
void communicator_barrier(const Communicator *communicator, const char *what);

// Gathers `bytes` bytes at `mine` of every process into `all` [size, bytes], in rank order, on every process.
void communicator_gather(const Communicator *communicator, void *all, const void *mine, size_t bytes,
                         const char *what);

// Copies `bytes` bytes at `data` from rank 0 to every other process.
void communicator_broadcast(const Communicator *communicator, void *data, size_t bytes, const char *what);

// Replaces values[count] by their sums over all processes, added in rank order: every process gets the same
// bits.
void communicator_sum(const Communicator *communicator, double *values, int count, const char *what);

// Whether `holds` is true on every process.
bool communicator_all(const Communicator *communicator, bool holds, const char *what);

#ifdef __cplusplus
}
#endif
