// Soft failures: a function that may fail without ending the process returns bool, and for a false one says
// why, in one line for the user, in the Reason it is given. (Where the caller ends the process: fatal.)
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define REASON_SIZE 4096 // a path and what is wrong with it

typedef struct {
    char text[REASON_SIZE]; // without a line feed; empty: nothing went wrong
} Reason;

// Formats the reason and returns false: `return fail(reason, "…", …)`. What would break the line or drive a
// terminal (texts that quote names out of files may hold anything) is replaced by question marks.
bool fail(Reason *reason, const char *format, ...) __attribute__((format(printf, 2, 3)));

// fail with "cannot ACTION PATH: " and what errno says. errno stays.
bool fail_errno(Reason *reason, const char *action, const char *path);

#ifdef __cplusplus
}
#endif
