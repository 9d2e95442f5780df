// Shared by the fuzz targets. Each is a program to which libFuzzer gives inputs (make fuzz builds them, make
// fuzz-check runs each for half a minute):
//
//   build/fuzz/TARGET -close_fd_mask=3 -max_total_time=600 build/fuzz/corpus/TARGET
//
// The input becomes a file, which the code under test must read or refuse, without a crash, an abort, an
// access out of bounds or undefined behaviour (which the sanitizers detect).
#pragma once
#include "base/common.h"

// Runs action(argument), which may call fatal(). If it does, returns false, and frees the memory and closes
// the files that the action had open.
bool survives(void (*action)(void *argument), void *argument);

// malloc and free for libraries that take such functions: memory that `survives` frees after a fatal().
void *tracked_allocate(size_t bytes);
void tracked_free(void *memory);

// Writes a first input called `name` to the corpus, the first directory on the command line, if there is one.
void seed_corpus(int argc, char **argv, const char *name, const void *data, size_t bytes);

// The path of a file in memory with these contents. Each call overwrites the file of the last one.
const char *memory_file(const void *data, size_t bytes);

// Replaces the contents of a file.
void replace_file(const char *path, const void *data, size_t bytes);

// Called by libFuzzer.
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
