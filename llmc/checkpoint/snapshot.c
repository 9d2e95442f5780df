#include "checkpoint/snapshot.h"

#include <stdlib.h>
#include <sys/mman.h>

// Bytes that can be allocated without swapping. (posix_memalign alone is no test: Linux grants more than it
// has.)
static size_t available_memory(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file) return SIZE_MAX;
    char line[256];
    unsigned long long kilobytes = 0;
    bool found = false;
    while (!found && fgets(line, sizeof(line), file))
        found = sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1;
    fclose(file);
    return found ? (size_t)kilobytes * 1024 : SIZE_MAX;
}

// Allocates memory in large pages and touches it with all threads, so that the first copy, for which training
// waits, is faster. `sharers`: as in snapshot_reserve.
static char *allocate_touched(size_t bytes, int sharers) {
    const size_t page = (size_t)2 << 20;
    void *memory;
    if (bytes > available_memory() / (size_t)sharers || posix_memalign(&memory, page, bytes) != 0)
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
    if (!snapshot->memory)
        warning(
            "out of host memory: the copy of what a checkpoint saves needs %zu bytes; training waits while "
            "it is written",
            bytes);
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
