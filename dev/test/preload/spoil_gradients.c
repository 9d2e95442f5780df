// Simulates hardware that computes wrongly: preloaded into a run of several processes (LD_PRELOAD), it sets
// one gradient of one rank to NaN just before a sum over the ranks. It is the element before the buffer being
// summed: of the bucket that is summed next.
//
//   SPOIL_RANK=R                   the rank, in the world
//   SPOIL_FIRST=N                  first at the Nth sum, from 1 (each bucket of parameters is one sum),
//   SPOIL_EVERY=M SPOIL_TIMES=K    then at every Mth sum, K times in all
#include <math.h>
#include <mpi.h>
#include <stdlib.h>

static long setting(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

int MPI_Ireduce_scatter_block(const void *sent, void *received, int count, MPI_Datatype type, MPI_Op op,
                              MPI_Comm group, MPI_Request *request) {
    static long calls;
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    calls++;
    const long after = calls - setting("SPOIL_FIRST"), every = setting("SPOIL_EVERY");
    if (type == MPI_FLOAT && rank == setting("SPOIL_RANK") && after >= 0 && after % every == 0 &&
        after / every < setting("SPOIL_TIMES"))
        ((float *)sent)[-1] = NAN;
    return PMPI_Ireduce_scatter_block(sent, received, count, type, op, group, request);
}
