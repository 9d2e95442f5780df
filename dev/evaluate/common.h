// What the tools here share: a checkpoint's model opened to be evaluated, and their command lines.
#pragma once
#include "checkpoint/checkpoint.h"
#include "model/decoder.h"
#include "run/options.h"

// A checkpoint's model on a device of this process, one sequence at a time, without an optimizer. The weights
// are loaded once; decoders of several lengths come and go over them.
typedef struct {
    Checkpoint checkpoint;
    Options options; // that it was trained with
    Communicator communicator;
    Device *device;
    MemoryPlan *weights_memory, *decoder_memory;
    Weights *weights;
    LayerKind *layer_kinds; // [layers]: as trained
    Decoder *decoder;       // of evaluation_set_length
} Evaluation;

// `device` is auto, cpu or cuda. Ends the process with one line about what cannot be opened.
Evaluation evaluation_open(int *argc, char ***argv, const char *directory, const char *device);
void evaluation_close(Evaluation *evaluation);

// The decoder is one of sequences of so many tokens from here on; with `selection` it can also run the
// attention that the checkpoint was trained with, which is refused where its geometry does not fit the length.
void evaluation_set_length(Evaluation *evaluation, int64_t seq_len, bool selection);

// Logits float64[count, vocab_size] of consecutive rows of inputs int32[seq_len], all layers dense; for the
// caller to free.
double *evaluation_logits(Evaluation *evaluation, const int32_t *inputs, int64_t first_row, int64_t count);

// --- command lines --------------------------------------------------------------------------------------

struct option;

// getopt_long, which ends the process with one line about an option that is unknown or lacks its value, and
// with `help` on standard output and exit code 0 for --help (which `options` names, of value 'h').
int next_option(int argc, char **argv, const struct option *options, const char *help);

// The arguments that are no options, of which there must be `count`; `usage` names them.
char **other_arguments(int argc, char **argv, int count, const char *usage);

// The value of an option: a whole number, or a list of rising ones as in 1,2,3. Ends the process with one line
// about any other text.
int64_t parse_integer(const char *option, const char *text, int64_t minimum, int64_t maximum);

typedef struct {
    int64_t *values;
    int count;
} IntegerList;

IntegerList parse_integers(const char *option, const char *text, int64_t minimum, int64_t maximum);
IntegerList integers_append(IntegerList list, int64_t value);

struct cJSON;

// Adds the list under that name.
void json_add_integers(struct cJSON *json, const char *name, IntegerList list);

// Writes `json` to the file, and deletes it. A path of NULL: only that.
void json_write(const char *path, struct cJSON *json);
