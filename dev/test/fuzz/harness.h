// What the fuzz targets share. Each is a program that libFuzzer feeds with inputs (make fuzz; make fuzz-check
// runs all for half a minute):
//
//   build/fuzz/TARGET -close_fd_mask=3 -max_total_time=600 build/fuzz/corpus/TARGET
//
// The files that the code under test reads are made from the input, and have to be read or refused: no crash,
// no access out of bounds, no undefined behaviour (what the sanitizers watch), no abort.
#pragma once
#include "base/common.h"

// Runs code that may call fatal(): that comes back here, with false, and memory and files it had are
// released.
bool survives(void (*action)(void *argument), void *argument);

// malloc and free for libraries that can be given theirs, with the same care.
void *tracked_allocate(size_t bytes);
void tracked_free(void *memory);

// Puts an input to begin with into the first directory on the command line, if there is one.
void seed_corpus(int argc, char **argv, const char *name, const void *data, size_t bytes);

// A file in memory with these contents, at the same path every time until the next call.
const char *memory_file(const void *data, size_t bytes);

// Replaces the contents of a file.
void replace_file(const char *path, const void *data, size_t bytes);

// What libFuzzer calls.
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
