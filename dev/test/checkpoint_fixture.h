// Shared by the tests of checkpoints: a random state, saving, opening and loading it in one process, and
// checks of the files on the disk.
#pragma once
#include "test.h"

#include "checkpoint/checkpoint.h"
#include "checkpoint/saver.h"

// The files of a checkpoint of one rank, the manifest last.
enum { FIXTURE_FILES = 5 };
extern const char *const file_names[FIXTURE_FILES];

extern const Retention keep_all;
extern const Communicator alone; // the communicator of a run of one process

// --- a model's state ------------------------------------------------------------------------------------

typedef struct {
    ModelConfig config;
    ParameterTable table;
    TrainingState state;
} Fixture;

extern const ModelConfig small_shape;

// Creates a state with random values on a CPU device of this storage type; fixture_refill sets new random
// values.
Fixture *fixture_create(StorageType storage, ModelConfig config);
void fixture_refill(Fixture *model);
void fixture_destroy(Fixture *model);

// Checks that two states are equal: all weights (not the padding between tensors), and the optimizer's whole
// buffers.
void check_same_state(const Fixture *a, const Fixture *b);

// --- saving ---------------------------------------------------------------------------------------------

// A request to save, with some options; delete_request frees it.
SaveRequest new_request(const char *out_dir, int64_t step, Retention retention);
void delete_request(SaveRequest *request);

// Saves the model's state; ends the process if that fails.
void save_request(const Fixture *model, const SaveRequest *request, bool asynchronous);

typedef struct {
    const char *out_dir;
    const Fixture *model;
    int64_t step;
    Retention retention;
    bool asynchronous;
} SaveCall;

// As save_request, in the form that check_dies takes: `call` is a SaveCall.
void save(void *call);

// Saves a step without deleting others.
void save_step(const char *out_dir, const Fixture *model, int64_t step);

// --- opening and loading --------------------------------------------------------------------------------

typedef struct {
    const char *resume, *out_dir;
    const Fixture *model; // to load into; NULL: only open
} OpenCall;

// Opens and loads, in the form that check_dies takes: `call` is an OpenCall.
void open_and_load(void *call);

void check_refused(const char *resume, const char *out_dir, const Fixture *model, const char *message);

// Opens with "latest" and returns the step of the checkpoint; `warnings` receives the output on stderr.
int64_t open_latest(const char *out_dir, char warnings[4096]);

// Checks that "latest" opens this step, with a warning that contains `warning` (NULL: without any warning).
void check_latest(const char *out_dir, int64_t step, const char *warning);

// Checks that the checkpoint opened by "latest" has the state `expected`.
void check_loads(const char *out_dir, const Fixture *expected);

// --- files and directories ------------------------------------------------------------------------------
// The caller frees what these return.

// A new directory. The caller owns the name, unlike that of test_directory.
char *new_directory(void);

// out_dir/step_NNNNNNNN/name
char *step_file(const char *out_dir, int64_t step, const char *name);

char *read_all(const char *path, size_t *size);
void write_all(const char *path, const void *data, size_t bytes);
bool exists(const char *out_dir, const char *name);

// The names in a directory, sorted, as "a b c".
char *listing(const char *directory);
void check_listing(const char *directory, const char *expected);

// Makes a directory below out_dir with an incomplete file in it, as a crash would leave it.
void make_debris(const char *out_dir, const char *name);

// Writes a manifest that matches the directory's files.
void write_manifest(const char *directory);
