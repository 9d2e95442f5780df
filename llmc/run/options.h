// Options from the command line and from what a checkpoint recorded: parsing, printing, recording.
#pragma once
#include "run/option_table.h"

struct cJSON;

// The options of a command line, over those that a checkpoint recorded (`recorded`, or NULL; what it lacks has
// the value that programs without the option meant), over the defaults. Fails with a hint on anything unknown or
// malformed, and on a change to the recorded options that would silently break the run.
Options options_parse(int argc, char **argv, const struct cJSON *recorded);

// Prints the table and exits with code 0 if the command line asks for --help; the program's version, for --version.
void options_help(int argc, char **argv);

// The options that a checkpoint records, resolved. The caller deletes it.
struct cJSON *options_record(const Options *options);

// The value that a record has of an option, as text that the caller frees; NULL if it has none.
char *options_recorded(const struct cJSON *record, const char *name);

// Prints the options, group by group; with `recorded`, then a line for each that differs from it or that it lacks.
void options_print(const Options *options, const struct cJSON *recorded);

// Warns of recorded options that this program does not know.
void options_warn_unknown(const struct cJSON *recorded);
