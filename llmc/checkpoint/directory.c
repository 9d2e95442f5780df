#include "checkpoint/directory.h"

#include "base/files.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *const suffixes[STEP_KINDS] = {"", ".old", ".tmp"};

// --- names ----------------------------------------------------------------------------------------------

Path path_below(const char *directory, const char *name) {
    Path path;
    // A path that is too long becomes empty: a cut one could name another file, an empty one cannot be
    // opened.
    if (snprintf(path.text, sizeof(path.text), "%s/%s", directory, name) >= (int)sizeof(path.text))
        path.text[0] = 0;
    return path;
}

static void step_name(char name[64], int64_t step, StepKind kind) {
    snprintf(name, 64, "step_%08ld%s", (long)step, suffixes[kind]);
}

Path step_path(const char *out_dir, int64_t step, StepKind kind) {
    char name[64];
    step_name(name, step, kind);
    return path_below(out_dir, name);
}

bool step_parse(const char *text, StepDirectory *directory) {
    long step;
    if (sscanf(text, "step_%18ld", &step) != 1 || step < 0) return false;
    for (StepKind kind = 0; kind < STEP_KINDS; kind++) {
        char name[64];
        step_name(name, step, kind);
        *directory = (StepDirectory){step, kind};
        if (!strcmp(name, text)) return true;
    }
    return false;
}

static bool path_exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

// --- lists ----------------------------------------------------------------------------------------------

static int compare_steps(const void *a, const void *b) {
    const StepDirectory *first = (const StepDirectory *)a, *second = (const StepDirectory *)b;
    if (first->step != second->step) return first->step < second->step ? 1 : -1;
    return (int)first->kind - (int)second->kind;
}

static bool add_step(StepList *steps, int *capacity, StepDirectory found) {
    if (steps->count == *capacity) {
        const int larger = 2 * *capacity + 16;
        StepDirectory *list = realloc(steps->list, (size_t)larger * sizeof(StepDirectory));
        if (!list) return false;
        steps->list = list;
        *capacity = larger;
    }
    steps->list[steps->count++] = found;
    return true;
}

bool step_list(const char *out_dir, StepList *steps) {
    *steps = (StepList){0};
    DIR *directory = opendir(out_dir);
    if (!directory) return false;
    int capacity = 0;
    bool good = true;
    struct dirent *entry;
    while (good && (errno = 0, entry = readdir(directory))) {
        StepDirectory found;
        if (step_parse(entry->d_name, &found)) good = add_step(steps, &capacity, found);
    }
    good = good && errno == 0;
    const int cause = errno;
    closedir(directory);
    errno = cause;
    if (!good) {
        free(steps->list);
        *steps = (StepList){0};
    }
    if (steps->count > 0) qsort(steps->list, (size_t)steps->count, sizeof(StepDirectory), compare_steps);
    return good;
}

int64_t step_read_latest(const char *out_dir) {
    const Path path = path_below(out_dir, LATEST_FILE);
    char *text = file_read_text(path.text, 256, NULL);
    if (!text && errno != ENOENT) warning("cannot read %s: %s", path.text, strerror(errno));
    if (!text) return INT64_MAX;
    StepDirectory named;
    text[strcspn(text, "\n")] = 0;
    if (!step_parse(text, &named) || named.kind != STEP_WHOLE) {
        warning("%s does not name a checkpoint", path.text);
        named.step = INT64_MAX;
    } else if (!path_exists(path_below(out_dir, text).text)) {
        warning("%s names %s, which does not exist", path.text, text);
    }
    free(text);
    return named.step;
}

// --- saving ---------------------------------------------------------------------------------------------

// Deletes a directory after renaming it to .tmp: if the process dies meanwhile, what is left is not taken for
// a checkpoint.
static bool discard(const char *out_dir, StepDirectory directory) {
    const Path path = step_path(out_dir, directory.step, directory.kind);
    const Path doomed = step_path(out_dir, directory.step, STEP_TEMPORARY);
    if (!directory_remove(doomed.text)) return false;
    if (directory.kind == STEP_TEMPORARY) return true;
    return rename(path.text, doomed.text) == 0 ? directory_remove(doomed.text) : errno == ENOENT;
}

// Removes the .tmp and .old directories that a save, a replacement or a deletion left when the process died.
// An .old without its successor becomes the checkpoint again. Failures are ignored: such directories do no
// harm.
static void clean_up_after_crash(const char *out_dir) {
    StepList steps;
    if (!step_list(out_dir, &steps)) return;
    for (int i = 0; i < steps.count; i++) {
        const StepDirectory directory = steps.list[i];
        const Path path = step_path(out_dir, directory.step, directory.kind);
        const Path whole = step_path(out_dir, directory.step, STEP_WHOLE);
        if (directory.kind == STEP_OLD && !path_exists(whole.text))
            rename(path.text, whole.text);
        else if (directory.kind != STEP_WHOLE)
            discard(out_dir, directory);
    }
    free(steps.list);
}

bool step_begin(const char *out_dir, int64_t step, Reason *reason) {
    const Path path = step_path(out_dir, step, STEP_TEMPORARY);
    if (!path.text[0]) errno = ENAMETOOLONG;
    if (!path.text[0] || !directory_make(out_dir)) return fail_errno(reason, "make", out_dir);
    clean_up_after_crash(out_dir);
    return mkdir(path.text, 0777) == 0 || fail_errno(reason, "make", path.text);
}

// Renames `temporary` to `whole`, and an existing `whole` to `old` first. If the process dies meanwhile,
// `whole` or `old` is a good checkpoint.
static bool move_into_place(const char *temporary, const char *whole, const char *old, Reason *reason) {
    const bool replaces = path_exists(whole);
    if (replaces && rename(whole, old) != 0) return fail_errno(reason, "rename", whole);
    if (rename(temporary, whole) == 0) return true;
    fail_errno(reason, "rename", temporary);
    if (replaces) rename(old, whole);
    return false;
}

static bool write_latest(const char *out_dir, int64_t step, Reason *reason) {
    const Path path = path_below(out_dir, LATEST_FILE);
    char text[64];
    step_name(text, step, STEP_WHOLE);
    strcat(text, "\n");
    return file_replace_text(path.text, text) || fail_errno(reason, "write", path.text);
}

bool step_commit(const char *out_dir, int64_t step, Reason *reason) {
    const Path temporary = step_path(out_dir, step, STEP_TEMPORARY),
               whole = step_path(out_dir, step, STEP_WHOLE), old = step_path(out_dir, step, STEP_OLD);
    if (!directory_sync(temporary.text)) return fail_errno(reason, "sync", temporary.text);
    if (!move_into_place(temporary.text, whole.text, old.text, reason)) return false;
    if (!directory_sync(out_dir)) return fail_errno(reason, "sync", out_dir);
    if (!write_latest(out_dir, step, reason)) return false;
    return directory_sync(out_dir) || fail_errno(reason, "sync", out_dir);
}

void step_abandon(const char *out_dir, int64_t step) {
    directory_remove(step_path(out_dir, step, STEP_TEMPORARY).text);
}

bool step_prune(const char *out_dir, int64_t step, const Retention *retention, Reason *reason) {
    const StepDirectory replaced = {step, STEP_OLD};
    bool good =
        discard(out_dir, replaced) || fail_errno(reason, "remove", step_path(out_dir, step, STEP_OLD).text);
    StepList steps;
    if (!step_list(out_dir, &steps)) return fail_errno(reason, "read", out_dir);
    int64_t kept = 0;
    for (int i = 0; i < steps.count; i++) {
        const StepDirectory *directory = &steps.list[i];
        if (directory->kind != STEP_WHOLE || directory->step > step) continue;
        if (kept++ < max_i64(retention->keep, 1)) continue;
        if (retention->keep_every > 0 && directory->step % retention->keep_every == 0) continue;
        if (!discard(out_dir, *directory))
            good = fail_errno(reason, "remove the old checkpoint",
                              step_path(out_dir, directory->step, STEP_WHOLE).text);
    }
    free(steps.list);
    return good;
}
