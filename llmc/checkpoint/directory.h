// The directories of checkpoints under --out: what they are called, which there are, and the steps by which
// one takes its place. Wherever those are cut short, whatever was good before is still good.
//
// Nothing here ends the process or allocates more than a list of directories and a line of text, so a thread
// beside the training may call it.
#pragma once
#include "base/reason.h"

#include <limits.h>

#define LATEST_FILE "latest" // beside the checkpoints: the name of the newest

// step_NNNNNNNN is a checkpoint. step_NNNNNNNN.tmp is one being written or deleted. step_NNNNNNNN.old is one
// that gives way to another of its step: as good as any until that one has its name.
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

// Whether `text` is such a name, and of what.
bool step_parse(const char *text, StepDirectory *directory);

// False, with the reason in errno, if out_dir cannot be read.
bool step_list(const char *out_dir, StepList *steps);

// The step that the file `latest` names; INT64_MAX with a warning (or without, if there is no such file) if
// it names none.
int64_t step_read_latest(const char *out_dir);

// --- saving ---------------------------------------------------------------------------------------------
// They fail softly.

// Makes out_dir where it is missing, removes what a crash left behind as far as that is possible, and makes
// the empty step_NNNNNNNN.tmp.
bool step_begin(const char *out_dir, int64_t step, Reason *reason);

// Gives the .tmp, whose files are whole and synced, its name, in the place of one that has it, and names it
// in `latest`.
bool step_commit(const char *out_dir, int64_t step, Reason *reason);

// Removes the .tmp of a save that failed, as far as that is possible.
void step_abandon(const char *out_dir, int64_t step);

typedef struct {
    int64_t keep;       // newest checkpoints to keep, at least 1
    int64_t keep_every; // checkpoints of steps divisible by this are never deleted; 0: none
} Retention;

// Deletes what `retention` does not keep. Checkpoints newer than `step` belong to a run that went on from an
// earlier one; they are not older, and stay.
bool step_prune(const char *out_dir, int64_t step, const Retention *retention, Reason *reason);
