#include "checkpoint/saver.h"

#include "checkpoint/huggingface.h"
#include "checkpoint/manifest.h"
#include "checkpoint/model_file.h"
#include "checkpoint/optimizer_file.h"
#include "checkpoint/rank_files.h"
#include "checkpoint/snapshot.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_SECONDS 0.05 // saver_finish exchanges the ranks' states this often

typedef enum { IDLE, PREPARE, WRITE, COMMIT, ABANDON, COMMITTED, FAILED } Phase;
enum { RANK_WORKING, RANK_DONE, RANK_FAILED }; // a rank's state in a phase: saver_local_state

struct Saver {
    const Communicator *communicator;
    bool asynchronous;
    Phase phase;
    SaveOutcome outcome;             // to be reported by the next saver_advance
    char message[REASON_SIZE + 128]; // returned by saver_message
    Snapshot snapshot;
    // the save under way
    char *out_dir;
    int64_t step;
    Retention retention;
    RankFiles files;
    Device *device;
    Manifest written; // the files that this rank has written
    char *manifest;   // on rank 0: the text of manifest.json, for the files of all ranks
    // this rank's work in the current phase
    pthread_t thread;
    bool working; // the thread is running
    bool good;    // the work succeeded
    Reason reason;
    atomic_bool cancelled; // a rank failed: writing can stop
};

// --- the protocol ---------------------------------------------------------------------------------------

static bool make_directory(Saver *saver);
static bool write_files(Saver *saver);
static bool commit(Saver *saver);
static bool remove_directory(Saver *saver);
static void take_reason(Saver *saver, bool good);
static void exchange_reports(Saver *saver, bool good);

// The phases: which ranks work and what they do; what all ranks do together when all work has ended; and the
// phases that follow success on all ranks, and failure on any. COMMITTED and FAILED end the save.
static const struct {
    enum { BY_RANK_0, BY_ALL } who;
    // Returns false, with saver->reason set, if it fails. Calls no MPI. With a copy of the state it runs in a
    // thread of its own, and calls no device either.
    bool (*work)(Saver *saver);
    void (*conclude)(Saver *saver, bool good); // good: the work succeeded on all ranks
    Phase next, next_after_failure;
} protocol[] = {
    // clang-format off
    [PREPARE] = {BY_RANK_0, make_directory,   take_reason,      WRITE,     FAILED},
    [WRITE]   = {BY_ALL,    write_files,      exchange_reports, COMMIT,    ABANDON},
    [COMMIT]  = {BY_RANK_0, commit,           take_reason,      COMMITTED, ABANDON},
    [ABANDON] = {BY_RANK_0, remove_directory, take_reason,      FAILED,    FAILED},
    // clang-format on
};

static void end_save(Saver *saver, SaveOutcome outcome);

static void *do_work(void *saver_address) {
    Saver *saver = (Saver *)saver_address;
    saver->good = protocol[saver->phase].work(saver);
    return NULL;
}

// Does this rank's work: in a thread if there is a copy of the state, else before it returns.
static void start_work(Saver *saver) {
    saver->working = saver->files.copied && pthread_create(&saver->thread, NULL, do_work, saver) == 0;
    if (!saver->working) do_work(saver);
}

static void enter(Saver *saver, Phase phase) {
    saver->phase = phase;
    saver->good = true;
    saver->reason.text[0] = 0;
    if (phase == COMMITTED || phase == FAILED)
        end_save(saver, phase == COMMITTED ? SAVE_COMMITTED : SAVE_FAILED);
    else if (protocol[phase].who == BY_ALL || saver->communicator->rank == 0)
        start_work(saver);
}

int saver_local_state(Saver *saver) {
    if (saver->working && pthread_tryjoin_np(saver->thread, NULL) == 0) saver->working = false;
    return saver->working ? RANK_WORKING : saver->good ? RANK_DONE : RANK_FAILED;
}

SaveOutcome saver_advance(Saver *saver, const int *states) {
    const Phase phase = saver->phase;
    bool ended = phase != IDLE, good = true;
    for (int rank = 0; phase != IDLE && rank < saver->communicator->size; rank++) {
        ended &= states[rank] != RANK_WORKING;
        good &= states[rank] != RANK_FAILED;
    }
    if (!good) saver->cancelled = true;
    if (ended) {
        protocol[phase].conclude(saver, good);
        enter(saver, good ? protocol[phase].next : protocol[phase].next_after_failure);
    }
    const SaveOutcome outcome = saver->outcome;
    saver->outcome = SAVE_NONE;
    return outcome;
}

// --- the work of the phases -----------------------------------------------------------------------------

static bool make_directory(Saver *saver) {
    return step_begin(saver->out_dir, saver->step, &saver->reason);
}

static bool write_files(Saver *saver) {
    const Path directory = step_path(saver->out_dir, saver->step, STEP_TEMPORARY);
    return rank_files_write(&saver->files, directory.text, saver->device, &saver->cancelled, &saver->written,
                            &saver->reason);
}

// If older checkpoints cannot be deleted, the reason says so, but the save does not fail.
static bool commit(Saver *saver) {
    const Path directory = step_path(saver->out_dir, saver->step, STEP_TEMPORARY);
    if (!manifest_write(directory.text, saver->manifest, &saver->reason) ||
        !step_commit(saver->out_dir, saver->step, &saver->reason))
        return false;
    step_prune(saver->out_dir, saver->step, &saver->retention, &saver->reason);
    return true;
}

static bool remove_directory(Saver *saver) {
    step_abandon(saver->out_dir, saver->step);
    return true;
}

// --- messages between ranks when a phase has ended ------------------------------------------------------

static void set_message(Saver *saver, int rank, const Reason *reason) {
    char name[32] = "";
    if (saver->communicator->size > 1) snprintf(name, sizeof(name), "rank %d: ", rank);
    snprintf(saver->message, sizeof(saver->message), "saving a checkpoint: %s%s", name, reason->text);
}

static void take_reason(Saver *saver, bool good) {
    (void)good; // a committed checkpoint can have a reason too: see commit
    if (saver->reason.text[0]) set_message(saver, saver->communicator->rank, &saver->reason);
}

// The result of a rank's writing, which it sends to all ranks.
typedef struct {
    int files;
    Reason reason; // empty: nothing went wrong here
} Report;

// Makes rank 0's manifest of the files of all ranks. No rank has more than `most` files.
static void gather_manifest(Saver *saver, const Report *reports, int most) {
    const Communicator *communicator = saver->communicator;
    Manifest padded = manifest_create(most), all = manifest_create(most * communicator->size);
    memcpy(padded.list, saver->written.list, (size_t)saver->written.count * sizeof(ManifestEntry));
    communicator_gather(communicator, all.list, padded.list, (size_t)most * sizeof(ManifestEntry),
                        "the files of a checkpoint");
    for (int rank = 0; rank < communicator->size; rank++)
        for (int i = 0; i < reports[rank].files; i++) all.list[all.count++] = all.list[rank * most + i];
    if (communicator->rank == 0) saver->manifest = manifest_text(&all);
    manifest_free(&padded);
    manifest_free(&all);
}

static void exchange_reports(Saver *saver, bool good) {
    const int size = saver->communicator->size;
    const Report mine = {saver->written.count, saver->reason};
    Report *all = host_allocate((size_t)size, sizeof(Report), "reports of all ranks");
    communicator_gather(saver->communicator, all, &mine, sizeof(mine), "the files of a checkpoint");
    int most = 0;
    for (int rank = size - 1; rank >= 0; rank--) {
        // A rank that only stopped because another failed has no reason.
        if (all[rank].reason.text[0]) set_message(saver, rank, &all[rank].reason);
        most = (int)max_i64(most, all[rank].files);
    }
    if (good) gather_manifest(saver, all, most);
    free(all);
}

// --- beginning and end of a save ------------------------------------------------------------------------

// The save that runs beside training, which is finished at this process's exit; `owner` is this process,
// since the exit of a forked child must not touch the save.
static Saver *under_way;
static pid_t owner;

static void list_files(RankFiles *files, const TrainingState *state, const SaveRequest *request) {
    const bool first = state->communicator->rank == 0;
    if (first)
        rank_files_add_json(files, CONFIG_FILE,
                            huggingface_config(state->config, state->device->ops->storage, request->seq_len,
                                               request->separator_token));
    if (first) model_file_add(files, state);
    optimizer_file_add(files, state);
    if (first)
        rank_files_add_json(files, TRAINER_FILE,
                            trainer_file_create(&request->progress, request->options, request->guard));
}

// Copies the files' device memory to host memory. False on all ranks if one of them has too little. Ranks wait for
// each other without a deadline: where memory is short this takes long.
static bool copy_files(Saver *saver) {
    const Communicator *communicator = saver->communicator;
    Snapshot *snapshot = &saver->snapshot;
    const int sharers = (int)max_i64(communicator->local_size, 1);
    if (!communicator_all(communicator, snapshot_has_room(snapshot, &saver->files, sharers), NULL) ||
        !communicator_all(communicator, snapshot_reserve(snapshot, &saver->files), NULL))
        return false;
    snapshot_take(snapshot, &saver->files, saver->device);
    communicator_barrier(communicator, NULL);
    return true;
}

void saver_begin(Saver *saver, const TrainingState *state, const SaveRequest *request) {
    assert(saver->phase == IDLE);
    saver->out_dir = format_string("%s", request->out_dir);
    saver->step = request->progress.step;
    saver->retention = request->retention;
    saver->device = state->device;
    saver->message[0] = 0;
    saver->cancelled = false;
    list_files(&saver->files, state, request);
    saver->written = manifest_create(saver->files.count);
    const bool beside_training = saver->asynchronous && copy_files(saver);
    if (beside_training) under_way = saver;
    enter(saver, PREPARE);
    if (!beside_training) saver->outcome = saver_finish(saver);
}

// Ends the save. Rank 0's message becomes the message of all ranks.
static void end_save(Saver *saver, SaveOutcome outcome) {
    communicator_broadcast(saver->communicator, saver->message, sizeof(saver->message),
                           "the end of a checkpoint");
    free(saver->out_dir);
    free(saver->manifest);
    saver->out_dir = saver->manifest = NULL;
    rank_files_free(&saver->files);
    manifest_free(&saver->written);
    under_way = NULL;
    saver->phase = IDLE;
    saver->outcome = outcome;
}

SaveOutcome saver_poll(Saver *saver) {
    int *states = host_allocate((size_t)saver->communicator->size, sizeof(int), "states of all ranks");
    const int mine = saver_local_state(saver);
    // No deadline: without a copy a rank writes all its files before it comes here, and a disk may take long.
    communicator_gather(saver->communicator, states, &mine, sizeof(mine), NULL);
    const SaveOutcome outcome = saver_advance(saver, states);
    free(states);
    return outcome;
}

// Waits for this rank's work, but only for POLL_SECONDS: the other ranks are waiting for its state.
static void wait_a_little(Saver *saver) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(1e9 * POLL_SECONDS);
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (saver->working && pthread_timedjoin_np(saver->thread, NULL, &until) == 0) saver->working = false;
}

SaveOutcome saver_finish(Saver *saver) {
    SaveOutcome outcome = saver_poll(saver);
    while (saver->phase != IDLE) {
        wait_a_little(saver);
        outcome = saver_poll(saver);
    }
    return outcome;
}

const char *saver_message(const Saver *saver) {
    return saver->message;
}

// --- the end of the process -----------------------------------------------------------------------------

// At exit a single process finishes the save under way. Of several ranks one cannot, because the others may
// be at any point of the program; it only waits for renames and deletions to end. An unfinished .tmp does no
// harm.
static void finish_at_exit(void) {
    Saver *saver = under_way;
    if (!saver || owner != getpid()) return;
    under_way = NULL;
    if (saver->communicator->size > 1) {
        if (saver->working && (saver->phase == COMMIT || saver->phase == ABANDON))
            pthread_join(saver->thread, NULL);
    } else if (saver_finish(saver) == SAVE_FAILED) {
        warning("%s", saver->message);
    }
}

static void guard_exit(void) {
    if (owner != getpid()) atexit(finish_at_exit);
    owner = getpid();
}

Saver *saver_create(const Communicator *communicator, bool asynchronous) {
    Saver *saver = host_allocate(1, sizeof(Saver), "the saver of checkpoints");
    saver->communicator = communicator;
    saver->asynchronous = asynchronous;
    saver->good = true;
    if (asynchronous) guard_exit();
    return saver;
}

void saver_destroy(Saver *saver) {
    assert(saver->phase == IDLE);
    snapshot_free(&saver->snapshot);
    free(saver);
}
