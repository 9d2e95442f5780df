// The directories of checkpoints under --out: their names, lists of them, and how one is begun, committed and
// deleted. If the process dies at any moment, every checkpoint that was good before is still good.
//
// No function here ends the process or allocates more than a list of directories and a line of text, so the
// thread that saves beside training may call them.
#pragma once
#include "base/reason.h"

#include <limits.h>

#define LATEST_FILE "latest" // a file under --out that holds the name of the newest checkpoint

// step_NNNNNNNN is a checkpoint. step_NNNNNNNN.tmp is being written or deleted. step_NNNNNNNN.old is a
// checkpoint that is being replaced by one of the same step; it is good, and is deleted when the new one has
// its name.
typedef enum { STEP_WHOLE, STEP_OLD, STEP_TEMPORARY, STEP_KINDS } StepKind;

typedef struct {
    int64_t step;
    StepKind kind;
} StepDirectory;

typedef struct {
    StepDirectory *list; // newest first; to be freed
    int count;
} StepList;

typedef struct {
    char text[PATH_MAX];
} Path;

// out_dir/step_NNNNNNNN[.old|.tmp]
Path step_path(const char *out_dir, int64_t step, StepKind kind);

// directory/name
Path path_below(const char *directory, const char *name);

// Whether `text` is the name of such a directory; if so, *directory is its step and kind.
bool step_parse(const char *text, StepDirectory *directory);

// Lists the step directories in out_dir, newest first; the caller frees steps->list. False, with the reason
// in errno, if out_dir cannot be read.
bool step_list(const char *out_dir, StepList *steps);

// The step that the file `latest` names. INT64_MAX if there is no such file, or, with a warning, if it cannot
// be read or names no checkpoint.
int64_t step_read_latest(const char *out_dir);

// --- saving ---------------------------------------------------------------------------------------------
// They fail softly.

// Makes out_dir where it is missing, removes what a crash left behind as far as that is possible, and makes
// the empty step_NNNNNNNN.tmp.
bool step_begin(const char *out_dir, int64_t step, Reason *reason);

// Renames the .tmp, whose files must be complete and synced, to step_NNNNNNNN, replacing a checkpoint of that
// name, and writes this name to `latest`.
bool step_commit(const char *out_dir, int64_t step, Reason *reason);

// Removes the .tmp of a save that failed, as far as that is possible.
void step_abandon(const char *out_dir, int64_t step);

typedef struct {
    int64_t keep;       // newest checkpoints to keep, at least 1
    int64_t keep_every; // checkpoints of steps divisible by this are never deleted; 0: none
} Retention;

// Deletes the checkpoints up to `step` that `retention` does not keep. Newer ones stay: they are from an
// earlier run, if this one resumed from an older checkpoint.
bool step_prune(const char *out_dir, int64_t step, const Retention *retention, Reason *reason);
