// What tests of checkpoints share: a state filled at random, saved, opened and loaded by one process, and what
// is on the disk then.
#pragma once
#include "test.h"

#include "checkpoint/checkpoint.h"
#include "checkpoint/saver.h"

// The files of a checkpoint of one rank, the manifest last.
enum { FIXTURE_FILES = 5 };
extern const char *const file_names[FIXTURE_FILES];

extern const Retention keep_all;
extern const Communicator alone; // a run of one process

// --- a model's state ------------------------------------------------------------------------------------

typedef struct {
    ModelConfig config;
    ParameterTable table;
    TrainingState state;
} Fixture;

extern const ModelConfig small_shape;

// A state filled at random, on a CPU device of that storage type; the same filled again.
Fixture *fixture_create(StorageType storage, ModelConfig config);
void fixture_refill(Fixture *model);
void fixture_destroy(Fixture *model);

// Weights tensor by tensor (what lies between them is not part of the model), the optimizer's buffers whole.
void check_same_state(const Fixture *a, const Fixture *b);

// --- saving ---------------------------------------------------------------------------------------------

// A request with some options, for delete_request.
SaveRequest new_request(const char *out_dir, int64_t step, Retention retention);
void delete_request(SaveRequest *request);

// Saves, and ends the process if that fails.
void save_request(const Fixture *model, const SaveRequest *request, bool asynchronous);

typedef struct {
    const char *out_dir;
    const Fixture *model;
    int64_t step;
    Retention retention;
    bool asynchronous;
} SaveCall;

// The same, for check_dies: `call` is a SaveCall.
void save(void *call);

// Saves a step, and keeps all others.
void save_step(const char *out_dir, const Fixture *model, int64_t step);

// --- opening and loading --------------------------------------------------------------------------------

typedef struct {
    const char *resume, *out_dir;
    const Fixture *model; // to load into; NULL: only open
} OpenCall;

// For check_dies too: `call` is an OpenCall.
void open_and_load(void *call);

void check_refused(const char *resume, const char *out_dir, const Fixture *model, const char *message);

// Opens with "latest"; the step it is of, and what was said on stderr.
int64_t open_latest(const char *out_dir, char warnings[4096]);

// Checks that "latest" is that step, with a warning that contains the text (NULL: without a warning).
void check_latest(const char *out_dir, int64_t step, const char *warning);

// Checks that "latest" holds the same state.
void check_loads(const char *out_dir, const Fixture *expected);

// --- what is on the disk --------------------------------------------------------------------------------
// The caller frees what these return.

// A fresh directory whose name outlives the next one.
char *new_directory(void);

// out_dir/step_NNNNNNNN/name
char *step_file(const char *out_dir, int64_t step, const char *name);

char *read_all(const char *path, size_t *size);
void write_all(const char *path, const void *data, size_t bytes);
bool exists(const char *out_dir, const char *name);

// The names in a directory, sorted, as "a b c".
char *listing(const char *directory);
void check_listing(const char *directory, const char *expected);

// A directory below out_dir with half a file in it, as a crash leaves it.
void make_debris(const char *out_dir, const char *name);

// Writes the manifest of what is in the directory.
void write_manifest(const char *directory);
