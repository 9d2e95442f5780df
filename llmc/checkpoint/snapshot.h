// The copy in host memory of what a save writes, so that training may go on while it is written.
#pragma once
#include "checkpoint/rank_files.h"

typedef struct {
    char *memory; // kept from one save to the next
    size_t bytes;
} Snapshot;

// Memory for the runs of these files; false with a warning if there is not enough. `sharers` processes of
// this host ask for memory at the same time.
bool snapshot_reserve(Snapshot *snapshot, const RankFiles *files, int sharers);

// Copies the runs from the device, and tells the files where their copies are.
void snapshot_take(Snapshot *snapshot, RankFiles *files, Device *device);

void snapshot_free(Snapshot *snapshot);
