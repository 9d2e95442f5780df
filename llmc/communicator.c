#include "communicator.h"

#ifdef USE_MPI
#include <mpi.h>
#endif

Communicator communicator_create(int *argc, char ***argv) {
    Communicator communicator = {0, 1};
#ifdef USE_MPI
    MPI_Init(argc, argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &communicator.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &communicator.size);
#else
    (void)argc;
    (void)argv;
#endif
    return communicator;
}

void communicator_destroy(Communicator *communicator) {
#ifdef USE_MPI
    MPI_Finalize();
#endif
    communicator->size = 0;
}
