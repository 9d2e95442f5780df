// A copy in host memory of the device memory that a save writes, so that training may go on meanwhile.
#pragma once
#include "checkpoint/rank_files.h"

typedef struct {
    char *memory; // kept from one save to the next
    size_t bytes;
} Snapshot;

// Allocates memory for the runs of these files; false, with a warning, if there is not enough. `sharers`: the
// number of processes of this host that allocate such copies at the same time.
bool snapshot_reserve(Snapshot *snapshot, const RankFiles *files, int sharers);

// Copies the files' runs from the device, sets their `copy` pointers, and marks them as copied.
void snapshot_take(Snapshot *snapshot, RankFiles *files, Device *device);

void snapshot_free(Snapshot *snapshot);
