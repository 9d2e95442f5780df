// A copy in host memory of the device memory that a save writes, so that training may go on meanwhile.
#pragma once
#include "checkpoint/rank_files.h"

typedef struct {
    char *memory; // kept from one save to the next
    size_t bytes;
} Snapshot;

// Whether the host has memory for the runs of these files; warns if not. `sharers`: the number of processes of this
// host that are about to allocate such copies. All ask before the first of them does: Linux grants more than it has,
// and kills the process that uses it.
bool snapshot_has_room(const Snapshot *snapshot, const RankFiles *files, int sharers);

// Allocates that memory, if there is none from an earlier save; false, with a warning, if it is refused.
bool snapshot_reserve(Snapshot *snapshot, const RankFiles *files);

// Copies the files' runs from the device, sets their `copy` pointers, and marks them as copied.
void snapshot_take(Snapshot *snapshot, RankFiles *files, Device *device);

void snapshot_free(Snapshot *snapshot);
