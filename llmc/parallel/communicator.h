// The processes of a run: who they are, which groups they form, and what their hosts tell one another. What
// devices exchange is in llmc/device/collectives.h.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// Context-parallel processes hold parts of the same sequences and stand next to each other in rank;
// data-parallel ones have the same parts of different sequences.
typedef enum { GROUP_WORLD, GROUP_DATA, GROUP_CONTEXT, GROUPS } GroupKind;

// This process's place in a group.
typedef struct {
    int rank, size;
} Group;

typedef struct {
    int rank, size;             // in the world
    int local_rank, local_size; // among the processes of this host
    Group groups[GROUPS];       // data and context from communicator_divide on; until then of one
    void *handles[GROUPS];      // MPI_Comm; none of GROUP_DATA, whose ranks exchange nothing on their own
} Communicator;

// Starts MPI if mpirun or srun started this process; else it is a group of one. From here on only rank 0
// prints to standard output, errors and warnings of several ranks name theirs, and a process that fails
// before communicator_destroy ends all.
Communicator communicator_create(int *argc, char ***argv);

// Makes the groups: context groups of `context_size`, which divides the world's size.
void communicator_divide(Communicator *communicator, int context_size);

void communicator_destroy(Communicator *communicator);

// --- between hosts: all processes call these together, in the same order ---------------------------------
// `what` says what for, should it not come to an end (llmc/parallel/watchdog.h).

// Waits for all.
void communicator_barrier(const Communicator *communicator, const char *what);

// The `bytes` of every process, in rank order, to all: bytes · size of them.
void communicator_gather(const Communicator *communicator, void *all, const void *mine, size_t bytes,
                         const char *what);

// Rank 0's bytes to all.
void communicator_broadcast(const Communicator *communicator, void *data, size_t bytes, const char *what);

// The sum of everyone's values, added in rank order: the same bits for all.
void communicator_sum(const Communicator *communicator, double *values, int count, const char *what);

// Whether it holds for all.
bool communicator_all(const Communicator *communicator, bool holds, const char *what);

#ifdef __cplusplus
}
#endif
