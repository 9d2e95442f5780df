#include "checkpoint/snapshot.h"

#include "base/host_memory.h"

#include <stdlib.h>
#include <sys/mman.h>

static size_t files_bytes(const RankFiles *files) {
    size_t bytes = 1; // a rank may have nothing to copy
    for (int i = 0; i < files->count; i++) bytes += rank_files_run_bytes(files, &files->list[i]);
    return bytes;
}

static bool warn_of_no_room(size_t bytes, size_t available) {
    char needed[32], left[32];
    warning(
        "out of host memory: the copy of what a checkpoint saves needs %s, and %s are free; training waits "
        "while it is written",
        format_bytes(needed, (double)bytes), format_bytes(left, (double)available));
    return false;
}

bool snapshot_has_room(const Snapshot *snapshot, const RankFiles *files, int sharers) {
    const size_t bytes = files_bytes(files), available = host_memory("").free_bytes / (size_t)sharers;
    return bytes <= snapshot->bytes + available || warn_of_no_room(bytes, available);
}

// Allocates memory in large pages and touches it with all threads, so that the first copy, for which training
// waits, is faster.
static char *allocate_touched(size_t bytes) {
    const size_t page = (size_t)2 << 20;
    void *memory;
    if (posix_memalign(&memory, page, bytes) != 0) return NULL;
    madvise(memory, bytes, MADV_HUGEPAGE);
#pragma omp parallel for schedule(static) if (bytes > 16 * page)
    for (size_t offset = 0; offset < bytes; offset += 4096) ((volatile char *)memory)[offset] = 0;
    return (char *)memory;
}

bool snapshot_reserve(Snapshot *snapshot, const RankFiles *files) {
    const size_t bytes = files_bytes(files);
    if (bytes > snapshot->bytes) {
        free(snapshot->memory);
        snapshot->memory = allocate_touched(bytes);
        snapshot->bytes = snapshot->memory ? bytes : 0;
    }
    return snapshot->memory || warn_of_no_room(bytes, host_memory("").free_bytes);
}

void snapshot_take(Snapshot *snapshot, RankFiles *files, Device *device) {
    char *to = snapshot->memory;
    files->copied = true;
    for (int i = 0; i < files->count; i++) {
        RankFile *file = &files->list[i];
        file->copy = to;
        for (int j = 0; j < file->run_count; j++) {
            const MemoryRun *run = &files->runs[file->first_run + j];
            device->download(device, to, run->memory, run->bytes);
            to += run->bytes;
        }
    }
}

void snapshot_free(Snapshot *snapshot) {
    free(snapshot->memory);
    *snapshot = (Snapshot){0};
}
