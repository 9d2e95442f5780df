// trainer.json: the progress of training, every recorded option, the guard's record, and the version of the
// program that wrote it.
#pragma once
#include "base/reason.h"

struct cJSON;

#define TRAINER_FILE "trainer.json"

// How far training has come.
typedef struct {
    int64_t step;    // optimizer steps done
    int64_t samples; // samples consumed: the next step begins at this position of the training order
    int64_t skipped; // how many of the steps made no update (llmc/run/guard.h)
} Progress;

// The content of trainer.json; the caller deletes it. options and guard are copied.
struct cJSON *trainer_file_create(const Progress *progress, const struct cJSON *options,
                                  const struct cJSON *guard);

// Reads trainer.json; the caller deletes *options and *guard. A file written before the guard existed gives
// an empty *guard and no skipped steps. Fails softly.
bool trainer_file_read(const char *directory, Progress *progress, struct cJSON **options,
                       struct cJSON **guard, Reason *reason);
