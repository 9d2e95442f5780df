// manifest.json: the size and the XXH3-128 hash of every other file of a checkpoint. It is written last, so a
// directory that has one is complete, and its hashes reveal damage to any file.
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

// An empty manifest with room for `most` entries.
Manifest manifest_create(int most);
void manifest_free(Manifest *manifest);

// --- writing --------------------------------------------------------------------------------------------

// The text of manifest.json; the caller frees it.
char *manifest_text(const Manifest *manifest);

// Writes the text to the directory's manifest.json and waits until it is on the disk. Never ends the process
// and allocates very little, so the thread that saves beside training may call it.
bool manifest_write(const char *directory, const char *text, Reason *reason);

// --- reading --------------------------------------------------------------------------------------------
// These functions fail softly; the reason names the file that is wrong.

// Reads a directory's manifest. No hash covers the manifest itself, so its text must be exactly what
// manifest_text writes for its content; anything else is damage.
bool manifest_read(Manifest *manifest, const char *directory, Reason *reason);

// Whether the manifest has an entry for the file `name`.
bool manifest_lists(const Manifest *manifest, const char *name, Reason *reason);

// Whether all files in the directory have the sizes, or the hashes, of their entries. If there is much to
// read, files are hashed in parallel, a thread for each.
bool manifest_check_sizes(const Manifest *manifest, const char *directory, Reason *reason);
bool manifest_check_hashes(const Manifest *manifest, const char *directory, Reason *reason);
