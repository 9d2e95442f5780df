// Files that are whole or not there: reads and writes that tell how far they came, hashing on the way, and
// the steps that make a write outlive a crash.
#pragma once
#include "base/common.h"

#include <xxhash.h>

// Functions that return bool leave the reason for a false one in errno, those that return a pointer for NULL.
// Nothing here ends the process, and any thread may call it.

// --- reading --------------------------------------------------------------------------------------------

// Reads `bytes` from the byte `offset` on. Returns how many there were (fewer only at the end of the file),
// or -1.
int64_t file_read(int descriptor, void *out, size_t bytes, int64_t offset);

// The whole of a small file, NUL-ended, for the caller to free; NULL if it cannot be read or has more than
// `limit` bytes (EFBIG). *size, if not NULL, is its length.
char *file_read_text(const char *path, size_t limit, size_t *size);

#define FILE_HASH_SIZE 33

// The XXH3-128 hash of a file's bytes, as 32 hexadecimal digits (what xxh128sum prints).
bool file_hash(const char *path, char hash[FILE_HASH_SIZE]);

// --- writing --------------------------------------------------------------------------------------------

typedef struct {
    int descriptor;
    int64_t bytes;       // written so far
    XXH3_state_t *state; // their hash
} FileWriter;

// A new file; one of that name must not exist.
bool file_create(FileWriter *file, const char *path);

// After a failure, file_abandon is what remains to be called.
bool file_append(FileWriter *file, const void *data, size_t bytes);

// Waits until the file is on the disk, and closes it. `hash` may be NULL.
bool file_finish(FileWriter *file, char hash[FILE_HASH_SIZE]);

// Closes it as it is. errno stays.
void file_abandon(FileWriter *file);

// Puts a file with this text in the place of `path`: a reader, even after a crash, finds the old one or the
// new one. Goes through `path`.tmp.
bool file_replace_text(const char *path, const char *text);

// --- directories ----------------------------------------------------------------------------------------

// Makes a directory and those above it, where they are missing.
bool directory_make(const char *path);

// Waits until the directory's entries (files made, renamed, removed) are on the disk.
bool directory_sync(const char *path);

// Removes a directory and all it holds. One that does not exist is no failure.
bool directory_remove(const char *path);
