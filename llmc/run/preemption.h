// Being asked to stop: by a signal (a scheduler's warning, Ctrl-C) or by a limit on the run's time.
#pragma once
#include "base/common.h"

// The exit code of a run that was asked to stop, saved a checkpoint, and can be resumed (EX_TEMPFAIL).
enum { PREEMPTED_EXIT_CODE = 75 };

// From here on the first SIGTERM, SIGUSR1 or SIGINT, or the end of limit_minutes (0: no limit), asks the run to
// stop. A second signal ends the process at once.
void preemption_watch(double limit_minutes);

// The signal that asked, SIGALRM for the limit; 0: none has.
int preemption_requested(void);

// "SIGTERM", "the time limit", …
const char *preemption_name(int request);
