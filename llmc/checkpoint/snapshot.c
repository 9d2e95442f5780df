#include "checkpoint/snapshot.h"

#include "base/host_memory.h"

#include <stdlib.h>
#include <sys/mman.h>

// Allocates memory in large pages and touches it with all threads, so that the first copy, for which training
// waits, is faster. `sharers`: as in snapshot_reserve. (posix_memalign alone is no test of whether there is
// enough: Linux grants more than it has, and kills the process that uses it.)
static char *allocate_touched(size_t bytes, int sharers) {
    const size_t page = (size_t)2 << 20;
    void *memory;
    if (bytes > host_memory("").free_bytes / (size_t)sharers || posix_memalign(&memory, page, bytes) != 0)
        return NULL;
    madvise(memory, bytes, MADV_HUGEPAGE);
#pragma omp parallel for schedule(static) if (bytes > 16 * page)
    for (size_t offset = 0; offset < bytes; offset += 4096) ((volatile char *)memory)[offset] = 0;
    return (char *)memory;
}

bool snapshot_reserve(Snapshot *snapshot, const RankFiles *files, int sharers) {
    size_t bytes = 1; // a rank may have nothing to copy
    for (int i = 0; i < files->count; i++) bytes += rank_files_run_bytes(files, &files->list[i]);
    if (bytes > snapshot->bytes) {
        free(snapshot->memory);
        snapshot->memory = allocate_touched(bytes, sharers);
        snapshot->bytes = snapshot->memory ? bytes : 0;
    }
    if (!snapshot->memory) {
        char needed[32], left[32];
        warning(
            "out of host memory: the copy of what a checkpoint saves needs %s, and %s are free; training waits "
            "while it is written",
            format_bytes(needed, (double)bytes),
            format_bytes(left, (double)(host_memory("").free_bytes / (size_t)sharers)));
    }
    return snapshot->memory != NULL;
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
