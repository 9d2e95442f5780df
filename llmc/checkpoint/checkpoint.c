#include "checkpoint/checkpoint.h"

#include "base/json.h"
#include "checkpoint/directory.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/manifest.h"
#include "checkpoint/model_file.h"
#include "checkpoint/optimizer_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// --- verifying files against the manifest ---------------------------------------------------------------

static bool verify_manifest(const char *directory, Checkpoint *checkpoint, Reason *reason) {
    Manifest manifest;
    if (!manifest_read(&manifest, directory, reason)) return false;
    const bool good = manifest_check_sizes(&manifest, directory, reason) &&
                      manifest_lists(&manifest, CONFIG_FILE, reason) &&
                      manifest_lists(&manifest, MODEL_FILE, reason) &&
                      manifest_lists(&manifest, TRAINER_FILE, reason) &&
                      optimizer_files_listed(&manifest, &checkpoint->optimizer_files, reason) &&
                      manifest_check_hashes(&manifest, directory, reason);
    manifest_free(&manifest);
    return good;
}

bool checkpoint_read(const char *directory, Checkpoint *checkpoint, Reason *reason) {
    *checkpoint = (Checkpoint){0};
    if (!verify_manifest(directory, checkpoint, reason) ||
        !trainer_file_read(directory, &checkpoint->progress, &checkpoint->options, &checkpoint->guard,
                           reason))
        return false;
    checkpoint->path = format_string("%s", directory);
    return true;
}

// --- opening --------------------------------------------------------------------------------------------

static bool open_one_of(const char *out_dir, const StepList *steps, int64_t above, int64_t up_to,
                        Checkpoint *checkpoint) {
    for (int i = 0; i < steps->count; i++) {
        const StepDirectory *directory = &steps->list[i];
        if (directory->kind == STEP_TEMPORARY || directory->step <= above || directory->step > up_to)
            continue;
        const Path path = step_path(out_dir, directory->step, directory->kind);
        Reason damage;
        if (checkpoint_read(path.text, checkpoint, &damage)) return true;
        warning("the checkpoint %s is damaged: %s", path.text, damage.text);
    }
    return false;
}

static Checkpoint open_latest(const char *out_dir) {
    Checkpoint checkpoint = {0};
    if (!out_dir)
        fatal("--resume latest looks for checkpoints under --out: give it too, or name a checkpoint");
    StepList steps;
    if (!step_list(out_dir, &steps) && errno != ENOENT)
        fatal("--resume latest: cannot read --out %s: %s", out_dir, strerror(errno));
    const int64_t latest = step_read_latest(out_dir);
    // First the checkpoint that the file `latest` names and older ones; if none of them is good, newer ones.
    const bool found = open_one_of(out_dir, &steps, -1, latest, &checkpoint) ||
                       open_one_of(out_dir, &steps, latest, INT64_MAX, &checkpoint);
    if (!found)
        fatal("--resume latest: there is no %scheckpoint (step_NNNNNNNN) in --out %s",
              steps.count > 0 ? "good " : "", out_dir);
    free(steps.list);
    return checkpoint;
}

static Checkpoint open_named(const char *resume) {
    Checkpoint checkpoint = {0};
    Reason damage;
    if (!checkpoint_read(resume, &checkpoint, &damage))
        fatal(
            "--resume %s: not a good checkpoint: %s (--resume latest takes the newest good one under --out)",
            resume, damage.text);
    return checkpoint;
}

static char *broadcast_text(const Communicator *communicator, char *text) {
    size_t bytes = text ? strlen(text) + 1 : 0;
    communicator_broadcast(communicator, &bytes, sizeof(bytes), "opening a checkpoint");
    if (communicator->rank > 0) text = host_allocate(bytes, 1, "a checkpoint's options");
    communicator_broadcast(communicator, text, bytes, "opening a checkpoint");
    return text;
}

// Copies the checkpoint that rank 0 opened to all other ranks.
static void broadcast_checkpoint(const Communicator *communicator, Checkpoint *checkpoint) {
    const bool first = communicator->rank == 0;
    char *options = broadcast_text(communicator, first ? json_text(checkpoint->options, false) : NULL);
    char *guard = broadcast_text(communicator, first ? json_text(checkpoint->guard, false) : NULL);
    checkpoint->path = broadcast_text(communicator, checkpoint->path);
    communicator_broadcast(communicator, &checkpoint->progress, sizeof(Progress), "opening a checkpoint");
    communicator_broadcast(communicator, &checkpoint->optimizer_files, sizeof(int), "opening a checkpoint");
    if (!first) checkpoint->options = cJSON_Parse(options);
    if (!first) checkpoint->guard = cJSON_Parse(guard);
    free(options);
    free(guard);
}

Checkpoint checkpoint_open(const Communicator *communicator, const char *resume, const char *out_dir) {
    Checkpoint checkpoint = {0};
    if (communicator->rank == 0)
        checkpoint = strcmp(resume, "latest") ? open_named(resume) : open_latest(out_dir);
    if (communicator->size > 1) broadcast_checkpoint(communicator, &checkpoint);
    return checkpoint;
}

void checkpoint_close(Checkpoint *checkpoint) {
    free(checkpoint->path);
    cJSON_Delete(checkpoint->options);
    cJSON_Delete(checkpoint->guard);
    *checkpoint = (Checkpoint){0};
}

// --- loading --------------------------------------------------------------------------------------------

void checkpoint_load(const Checkpoint *checkpoint, const TrainingState *state) {
    const StorageType storage = state->device->ops->storage;
    const ParameterTable *table = state->table;
    SafetensorsFile model;
    OptimizerFiles optimizer;
    Reason reason;
    // Rank 0 checks the files first, while the others wait, however long: if they do not fit this model it alone
    // says so.
    if (state->communicator->rank > 0) communicator_barrier(state->communicator, NULL);
    if (!model_file_open(&model, checkpoint->path, table, storage, &reason) ||
        !optimizer_files_open(&optimizer, checkpoint->path, checkpoint->optimizer_files, &state->optimizer,
                              accumulator_type(storage), table->flat_elements, &reason))
        fatal("--resume: %s", reason.text);
    if (state->communicator->rank == 0) communicator_barrier(state->communicator, NULL);
    // The padding that makes buckets divisible by the ranks is in no file: it must be zero.
    training_state_zero(state);
    if (!model_file_load(&model, state, &reason) || !optimizer_files_load(&optimizer, state, &reason))
        fatal("--resume: %s", reason.text);
    safetensors_close(&model);
    optimizer_files_close(&optimizer);
}

bool checkpoint_load_weights(const Checkpoint *checkpoint, const TrainingState *state, Reason *reason) {
    SafetensorsFile model;
    if (!model_file_open(&model, checkpoint->path, state->table, state->device->ops->storage, reason))
        return false;
    training_state_zero(state);
    const bool good = model_file_load(&model, state, reason);
    safetensors_close(&model);
    return good;
}

// --- verifying it all -----------------------------------------------------------------------------------

static bool verify_contents(const Checkpoint *checkpoint, const ParameterTable *table, StorageType storage,
                            const StateBuffers *optimizer, Reason *reason) {
    SafetensorsFile model;
    if (!model_file_open(&model, checkpoint->path, table, storage, reason)) return false;
    safetensors_close(&model);
    OptimizerFiles files;
    if (!optimizer_files_open(&files, checkpoint->path, checkpoint->optimizer_files, optimizer,
                              accumulator_type(storage), table->flat_elements, reason))
        return false;
    optimizer_files_close(&files);
    return true;
}

char *checkpoint_verify(const char *directory, const StateBuffers *optimizer) {
    Checkpoint checkpoint = {0};
    Reason reason;
    ModelConfig config;
    StorageType storage = STORAGE_FLOAT32;
    if (!checkpoint_read(directory, &checkpoint, &reason) ||
        !huggingface_read_config(directory, &config, &storage, &reason))
        fatal("%s: not a good checkpoint: %s", directory, reason.text);
    ParameterTable table = parameter_table_create(&config, 1);
    if (!verify_contents(&checkpoint, &table, storage, optimizer, &reason))
        fatal("%s: not a good checkpoint: %s", directory, reason.text);
    char *line = format_string("%s: good, step %ld, %ld samples, %.1fM parameters in %s, %d optimizer file%s",
                               directory, (long)checkpoint.progress.step, (long)checkpoint.progress.samples,
                               1e-6 * (double)table.model_size, storage_dtype(storage),
                               checkpoint.optimizer_files, checkpoint.optimizer_files == 1 ? "" : "s");
    parameter_table_free(&table);
    checkpoint_close(&checkpoint);
    return line;
}
