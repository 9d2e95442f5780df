// manifest.json: the size and the XXH3-128 hash of every other file of a checkpoint. It is written last, so a
// directory that has one is complete; and with it damage to any file is found.
#pragma once
#include "base/files.h"
#include "base/reason.h"

#define MANIFEST_FILE "manifest.json"

enum { FILE_NAME_SIZE = 64 }; // a file's name in a checkpoint, with the NUL at its end

typedef struct {
    char name[FILE_NAME_SIZE];
    int64_t bytes;
    char hash[FILE_HASH_SIZE];
} ManifestEntry;

typedef struct {
    ManifestEntry *list;
    int count;
} Manifest;

// Room for that many entries; there are none yet.
Manifest manifest_create(int most);
void manifest_free(Manifest *manifest);

// --- writing --------------------------------------------------------------------------------------------

// What manifest.json says, for the caller to free.
char *manifest_text(const Manifest *manifest);

// Writes that text, and waits until it is on the disk. Ends no process, allocates next to nothing: a thread
// may call it.
bool manifest_write(const char *directory, const char *text, Reason *reason);

// --- reading --------------------------------------------------------------------------------------------
// These fail softly, with the name of the file that is not as it should be.

// Reads a directory's manifest, which has to be as manifest_text writes it: no hash vouches for the manifest
// itself, but there is only one way to write it.
bool manifest_read(Manifest *manifest, const char *directory, Reason *reason);

// Whether it has an entry of that name.
bool manifest_lists(const Manifest *manifest, const char *name, Reason *reason);

// Whether all files have the size, and the hash, that they were written with. Hashes are computed by all
// threads if there is enough to read.
bool manifest_check_sizes(const Manifest *manifest, const char *directory, Reason *reason);
bool manifest_check_hashes(const Manifest *manifest, const char *directory, Reason *reason);
