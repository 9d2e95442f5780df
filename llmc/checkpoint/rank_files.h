// The files that this rank writes of a checkpoint: each is a text (JSON, or the header of a safetensors file)
// and then runs of device memory. First they are listed, then written.
#pragma once
#include "base/json.h"
#include "checkpoint/manifest.h"
#include "device/device.h"

#include <stdatomic.h>

typedef struct {
    const void *memory; // of the device
    size_t bytes;
} MemoryRun;

typedef struct {
    char name[FILE_NAME_SIZE];
    char *text;
    size_t text_bytes;
    int first_run, run_count;
    const char *copy; // of its runs, one after the other, in host memory, if the files are copied
} RankFile;

typedef struct {
    RankFile *list;
    int count, capacity;
    MemoryRun *runs; // of all files, in their order
    int run_count, run_capacity;
    bool copied; // else what the runs hold is read from the device when it is written
} RankFiles;

// Adds a file that is this text so far; the list frees it.
void rank_files_add(RankFiles *files, const char *name, char *text, size_t text_bytes);

// Adds a file that is this JSON, which is deleted.
void rank_files_add_json(RankFiles *files, const char *name, cJSON *json);

// Appends device memory to the file that was added last.
void rank_files_append(RankFiles *files, const void *memory, size_t bytes);

// The bytes of a file's runs.
size_t rank_files_run_bytes(const RankFiles *files, const RankFile *file);

// Writes the files into the directory, each synced, with an entry in `written`, which has room for them.
// Fails softly; with an empty reason if it only stopped because `cancelled` was set meanwhile. If the files
// are copied this calls neither the device nor anything that ends the process, so a thread may do it.
bool rank_files_write(const RankFiles *files, const char *directory, Device *device,
                      const atomic_bool *cancelled, Manifest *written, Reason *reason);

void rank_files_free(RankFiles *files);
