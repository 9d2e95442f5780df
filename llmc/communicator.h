// The processes of a run.
#pragma once
#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int rank, size;
} Communicator;

// Starts MPI where it is built in; a program started without mpirun is a group of one.
Communicator communicator_create(int *argc, char ***argv);
void communicator_destroy(Communicator *communicator);

#ifdef __cplusplus
}
#endif
