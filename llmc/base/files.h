// Files that are whole or not there: reads and writes that tell how far they came, hashing on the way, and
// the steps that make a write outlive a crash.
#pragma once
#include "base/common.h"

#include <xxhash.h>

// A function that fails returns false (or NULL, or -1) and leaves the reason in errno. No function here ends
// the process, and any thread may call them.

// --- reading --------------------------------------------------------------------------------------------

// Reads `bytes` bytes, beginning at byte `offset` of the file. Returns the number of bytes read (fewer than
// `bytes` only at the end of the file), or -1.
int64_t file_read(int descriptor, void *out, size_t bytes, int64_t offset);

// The content of a small file, NUL-terminated; the caller frees it. NULL if the file cannot be read or has
// more than `limit` bytes (EFBIG). *size is set to its length, unless `size` is NULL.
char *file_read_text(const char *path, size_t limit, size_t *size);

#define FILE_HASH_SIZE 33

// The XXH3-128 hash of a file's bytes, as 32 hexadecimal digits (what xxh128sum prints).
bool file_hash(const char *path, char hash[FILE_HASH_SIZE]);

// --- writing --------------------------------------------------------------------------------------------

typedef struct {
    int descriptor;
    int64_t bytes;       // written so far
    XXH3_state_t *state; // hash of the bytes written so far
} FileWriter;

// Creates the file; fails if there is one of that name.
bool file_create(FileWriter *file, const char *path);

// Appends bytes to the file and to its hash. When it fails the caller calls file_abandon, not file_finish.
bool file_append(FileWriter *file, const void *data, size_t bytes);

// Waits until the file is on the disk and closes it, also when it fails. `hash` receives the hash of the
// whole file; it may be NULL.
bool file_finish(FileWriter *file, char hash[FILE_HASH_SIZE]);

// Closes an unfinished file and leaves it as it is. errno is kept.
void file_abandon(FileWriter *file);

// Writes the text to `path`.tmp and renames that to `path`: a reader, even after a crash, finds the old file
// or the new one, each whole.
bool file_replace_text(const char *path, const char *text);

// --- directories ----------------------------------------------------------------------------------------

// Makes a directory and its missing parents. One that exists is no failure.
bool directory_make(const char *path);

// Bytes that this user may still write on the file system of `path`, which need not exist: then its nearest parent
// that does tells. -1 if that cannot be found out.
int64_t disk_room(const char *path);

// Waits until the directory itself (which files were made, renamed, removed) is on the disk.
bool directory_sync(const char *path);

// Removes a directory with all its contents. One that does not exist is no failure.
bool directory_remove(const char *path);
