// Requests to stop the run: a signal (a scheduler's warning, Ctrl-C) or the end of a time limit.
#pragma once
#include "base/common.h"

// The exit code of a run that was asked to stop, saved a checkpoint, and can be resumed (EX_TEMPFAIL).
enum { PREEMPTED_EXIT_CODE = 75 };

// From here on the first SIGTERM, SIGUSR1 or SIGINT, or the end of limit_minutes (0: no limit), asks the run to
// stop. A second signal ends the process at once.
void preemption_watch(double limit_minutes);

// The request so far: the number of the first signal, or SIGALRM for the time limit; 0: none.
int preemption_requested(void);

// A request's name, for messages: "SIGTERM", "the time limit", …
const char *preemption_name(int request);
