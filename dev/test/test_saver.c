// The saver: however a save is stopped, a good checkpoint remains; and a save beside training writes the
// state as it was when the save began.
#include "checkpoint_fixture.h"

#include "checkpoint/snapshot.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

// --- saves that do not come to their end ----------------------------------------------------------------

static void save_to_full_disk(void *argument) {
    signal(SIGXFSZ, SIG_IGN); // writing beyond the limit is then an error like any other
    const struct rlimit limit = {5000, 5000};
    setrlimit(RLIMIT_FSIZE, &limit);
    save(argument);
}

static void test_failing_saves(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *file = format_string("%s/file", out_dir);
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    write_all(file, "x", 1);
    SaveCall into_file = {file, model, 1, keep_all, false};
    check_dies(save, &into_file, "file: Not a directory");
    SaveCall below_file = {format_string("%s/below", file), model, 1, keep_all, false};
    check_dies(save, &below_file, "file/below: Not a directory");
    check(unlink(file) == 0, "cannot remove %s", file);
    SaveCall nameless = {"", model, 1, keep_all, false};
    check_dies(save, &nameless, "saving a checkpoint: cannot make ");

    save_step(out_dir, model, 1);
    SaveCall full = {out_dir, model, 2, {1, 0}, false};
    check_dies(save_to_full_disk, &full, "step_00000002.tmp/model.safetensors: File too large");
    check_listing(out_dir, "latest step_00000001");
    full.step = 1; // a failed replacement must not destroy the old checkpoint
    check_dies(save_to_full_disk, &full, "step_00000001.tmp/model.safetensors: File too large");
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);

    char *latest = format_string("%s/latest", out_dir);
    check(unlink(latest) == 0, "cannot remove %s", latest);
    make_debris(out_dir, "latest");
    check_dies(save, &full, "latest: Is a directory");
    free((void *)below_file.out_dir);
    fixture_destroy(model);
    free(latest);
    free(file);
    free(out_dir);
}

// A process is killed at random moments, again and again, while it saves new steps and replaces old ones.
static void test_killed_saves(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *nested = format_string("%s/a/b", out_dir);
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(nested, model, 1);
    for (int i = 0; i < 25; i++) {
        char warnings[4096];
        const int64_t newest = open_latest(nested, warnings);
        fflush(NULL);
        const pid_t child = fork();
        if (child == 0) {
            SaveCall call = {nested, model, newest, {1 + i % 2, 0}, i % 5 > 1};
            for (;; call.step += i % 3 == 0 ? 0 : 1) save(&call);
        }
        usleep((useconds_t)random_below(30000));
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        check(WIFSIGNALED(status), "the saving process ended by itself");
        const int64_t found = open_latest(nested, warnings);
        check(found >= newest, "step %ld was there, only %ld is", (long)newest, (long)found);
        check(!strstr(warnings, "damaged"), "left behind: %s", warnings);
        check_loads(nested, model);
    }
    save_step(nested, model, 1000000);
    check(exists(nested, "step_01000000"), "cannot save after all that");
    fixture_destroy(model);
    free(nested);
    free(out_dir);
}

// --- beside training ------------------------------------------------------------------------------------

static void begin(Saver *saver, const char *out_dir, const Fixture *model, int64_t step) {
    SaveRequest request = new_request(out_dir, step, (Retention){2, 0});
    saver_begin(saver, &model->state, &request);
    delete_request(&request);
}

// The state at the beginning is saved, whatever training changes afterwards; each save is reported once.
static void test_beside_training(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *between = new_directory();
    Fixture *model = fixture_create(STORAGE_BFLOAT16, small_shape),
            *before = fixture_create(STORAGE_BFLOAT16, small_shape);
    Saver *saver = saver_create(&alone, true);
    check(saver_poll(saver) == SAVE_NONE && saver_finish(saver) == SAVE_NONE, "reports a save before any");
    for (int64_t step = 1; step <= 6; step++) {
        save_step(between, model, step);
        OpenCall call = {"latest", between, before};
        open_and_load(&call);
        begin(saver, out_dir, model, step);
        fixture_refill(model);
        SaveOutcome outcome = SAVE_NONE;
        for (int polls = 0; step % 2 == 0 && outcome == SAVE_NONE && polls < 60000; polls++) {
            outcome = saver_poll(saver);
            usleep(1000);
        }
        if (step % 2 == 1) outcome = saver_finish(saver);
        check(outcome == SAVE_COMMITTED && !saver_message(saver)[0], "outcome %d: %s", outcome,
              saver_message(saver));
        check(saver_poll(saver) == SAVE_NONE && saver_finish(saver) == SAVE_NONE, "reports a save twice");
        check_loads(out_dir, before);
    }
    check_listing(out_dir, "latest step_00000005 step_00000006");
    saver_destroy(saver);
    fixture_destroy(model);
    fixture_destroy(before);
    free(between);
    free(out_dir);
}

// A failed save, beside training or not, is returned as SAVE_FAILED, and the next save succeeds.
static void test_failure_is_no_end(void *argument) {
    const bool asynchronous = argument != NULL;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    Saver *saver = saver_create(&alone, asynchronous);
    begin(saver, out_dir, model, 1);
    check(saver_finish(saver) == SAVE_COMMITTED, "%s", saver_message(saver));
    void (*const handler)(int) = signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit, full = {5000, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &limit);
    full.rlim_max = limit.rlim_max;
    for (int64_t step = 1; step <= 2; step++) {
        setrlimit(RLIMIT_FSIZE, &full);
        begin(saver, out_dir, model, step);
        const SaveOutcome outcome = saver_finish(saver);
        setrlimit(RLIMIT_FSIZE, &limit);
        check(outcome == SAVE_FAILED, "outcome %d", outcome);
        check(strstr(saver_message(saver), "saving a checkpoint: cannot write ") &&
                  strstr(saver_message(saver), "model.safetensors: File too large"),
              "says %s", saver_message(saver));
        check_listing(out_dir, "latest step_00000001");
        check_loads(out_dir, model);
    }
    begin(saver, out_dir, model, 2);
    check(saver_finish(saver) == SAVE_COMMITTED && !saver_message(saver)[0], "%s", saver_message(saver));
    check_listing(out_dir, "latest step_00000001 step_00000002");
    signal(SIGXFSZ, handler);
    saver_destroy(saver);
    fixture_destroy(model);
    free(out_dir);
}

static void begin_and_die(void *argument) {
    const SaveCall *call = (const SaveCall *)argument;
    Saver *saver = saver_create(&alone, true);
    begin(saver, call->out_dir, call->model, call->step);
    fatal("the end");
}

// A process that ends with an error finishes the save under way.
static void test_end_beside_training(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    SaveCall call = {out_dir, model, 1, keep_all, true};
    check_dies(begin_and_die, &call, "the end");
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);
    fixture_destroy(model);
    free(out_dir);
}

static void begin_without_memory(void *argument) {
    const SaveCall *call = (const SaveCall *)argument;
    FILE *file = fopen("/proc/self/statm", "r");
    long pages;
    if (!file || fscanf(file, "%ld", &pages) != 1) fatal("no statm");
    fclose(file);
    const rlim_t bytes = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)48 << 20);
    const struct rlimit limit = {bytes, bytes};
    setrlimit(RLIMIT_AS, &limit);
    Saver *saver = saver_create(&alone, true);
    begin(saver, call->out_dir, call->model, call->step);
    if (saver_finish(saver) != SAVE_COMMITTED) fatal("%s", saver_message(saver));
    fatal("saved");
}

// Without memory for the copy, saver_begin returns only when the checkpoint is written.
static void test_no_memory_beside_training(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    const ModelConfig config = {4201, 256, 1, 4, 2, 300, 10000, 1e-5}; // 78 MB in float64
    Fixture *model = fixture_create(STORAGE_FLOAT64, config);
    SaveCall call = {out_dir, model, 1, keep_all, true};
    check_dies(begin_without_memory, &call, "out of host memory: the copy of what a checkpoint saves needs ");
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);
    fixture_destroy(model);
    free(out_dir);
}

// --- a rank's files -------------------------------------------------------------------------------------

// Any number of files, each with its text and then its runs of memory, written from the device or from a
// copy.
static void test_rank_files(void *argument) {
    const bool copied = argument != NULL;
    enum { FILES = 70, MOST_RUNS = 5 };
    char *directory = new_directory(), memory[MOST_RUNS];
    for (int i = 0; i < MOST_RUNS; i++) memory[i] = (char)('a' + i);
    Device *device = cpu_device_create(STORAGE_FLOAT32);
    RankFiles files = {0};
    for (int i = 0; i < FILES; i++) {
        char *name = format_string("file_%d", i);
        rank_files_add(&files, name, format_string("%d ", i), i < 10 ? 2 : 3);
        for (int run = 0; run < i % (MOST_RUNS + 1); run++) rank_files_append(&files, &memory[run], 1);
        free(name);
    }
    Snapshot snapshot = {0};
    if (copied) {
        check(snapshot_has_room(&snapshot, &files, 1) && snapshot_reserve(&snapshot, &files), "no memory");
        snapshot_take(&snapshot, &files, device);
        memset(memory, 'x', sizeof(memory));
    }
    const atomic_bool cancelled = false;
    Manifest written = manifest_create(FILES);
    Reason reason;
    check(rank_files_write(&files, directory, device, &cancelled, &written, &reason), "%s", reason.text);
    check(written.count == FILES, "%d of %d files are written", written.count, FILES);
    for (int i = 0; i < written.count; i++) {
        char *expected = format_string("%d %.*s", i, i % (MOST_RUNS + 1), "abcde"),
             *path = format_string("%s/file_%d", directory, i), *text = read_all(path, NULL);
        check(!strcmp(text, expected), "%s holds \"%s\", not \"%s\"", path, text, expected);
        free(text);
        free(path);
        free(expected);
    }
    check(manifest_check_sizes(&written, directory, &reason), "%s", reason.text);
    check(manifest_check_hashes(&written, directory, &reason), "%s", reason.text);
    manifest_free(&written);
    snapshot_free(&snapshot);
    rank_files_free(&files);
    device->destroy(device);
    free(directory);
}

void test_saver(void) {
    test_run("checkpoint: any number of files", test_rank_files, NULL);
    test_run("checkpoint: any number of files that are copied first", test_rank_files, (void *)"copied");
    test_run("checkpoint: failing saves", test_failing_saves, NULL);
    test_run("checkpoint: killed saves", test_killed_saves, NULL);
    test_run("checkpoint: beside training", test_beside_training, NULL);
    test_run("checkpoint: a failure is no end", test_failure_is_no_end, NULL);
    test_run("checkpoint: a failure beside training is no end", test_failure_is_no_end, (void *)"beside");
    test_run("checkpoint: an end beside training", test_end_beside_training, NULL);
    test_run("checkpoint: no memory beside training", test_no_memory_beside_training, NULL);
}
