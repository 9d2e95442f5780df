// trainer.json: how far training has come, every recorded option, what the guard knows, and the version of
// the program that wrote it.
#pragma once
#include "base/reason.h"

struct cJSON;

#define TRAINER_FILE "trainer.json"

// How far training has come.
typedef struct {
    int64_t step;    // optimizer steps done
    int64_t samples; // positions of the training order consumed
    int64_t skipped; // of the steps: those without an update (llmc/run/guard.h)
} Progress;

// What trainer.json says, for the caller to delete. options and guard are copied.
struct cJSON *trainer_file_create(const Progress *progress, const struct cJSON *options,
                                  const struct cJSON *guard);

// Reads it back; *options and *guard are objects for the caller to delete. A file from before the guard has
// an empty one, and no steps skipped.
bool trainer_file_read(const char *directory, Progress *progress, struct cJSON **options,
                       struct cJSON **guard, Reason *reason);
