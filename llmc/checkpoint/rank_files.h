// The files of a checkpoint that this rank writes. Each is a text (JSON, or the header of a safetensors file)
// followed by runs of device memory. The files are first listed, then written.
#pragma once
#include "base/json.h"
#include "checkpoint/manifest.h"
#include "device/device.h"

#include <stdatomic.h>

typedef struct {
    const void *memory; // device memory
    size_t bytes;
} MemoryRun;

typedef struct {
    char name[FILE_NAME_SIZE];
    char *text;
    size_t text_bytes;
    int first_run, run_count;
    const char *copy; // if the files are copied: the content of its runs, one after the other, in host memory
} RankFile;

typedef struct {
    RankFile *list;
    int count, capacity;
    MemoryRun *runs; // the runs of all files, in the order of the files
    int run_count, run_capacity;
    bool copied; // files are written from their copies in host memory (snapshot.h); else from the device
} RankFiles;

// Adds a file that begins with this text of text_bytes bytes. The list owns the text from then on.
void rank_files_add(RankFiles *files, const char *name, char *text, size_t text_bytes);

// Adds a file with this JSON as its text, and deletes `json`.
void rank_files_add_json(RankFiles *files, const char *name, cJSON *json);

// Appends device memory to the file that was added last.
void rank_files_append(RankFiles *files, const void *memory, size_t bytes);

// The number of bytes in a file's runs.
size_t rank_files_run_bytes(const RankFiles *files, const RankFile *file);

// Writes the files into the directory, syncs each and appends its entry to `written`, which must have room.
// Fails softly; the reason stays as it was if it only stopped because `cancelled` was set meanwhile. If the
// files are copied this calls neither the device nor anything that ends the process, so another thread may
// call it.
bool rank_files_write(const RankFiles *files, const char *directory, Device *device,
                      const atomic_bool *cancelled, Manifest *written, Reason *reason);

void rank_files_free(RankFiles *files);
