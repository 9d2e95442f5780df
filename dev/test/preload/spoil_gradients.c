// Hardware that computes wrongly, for tests: preloaded into a run of several processes (LD_PRELOAD), it turns
// one gradient of one rank into NaN, that before the ones which the ranks are about to sum up: of the layer
// before, whose turn comes next.
//
//   SPOIL_RANK=R                   of the world
//   SPOIL_FIRST=N                  at the Nth sum (each bucket of the parameters is one), from 1,
//   SPOIL_EVERY=M SPOIL_TIMES=K    and at every Mth after it, K times
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
