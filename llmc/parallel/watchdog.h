// Notices when a process waits for others without end, and ends it with a line that says in which phase: the
// launcher then ends the others. A thread of its own looks once a second.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// Starts it: waits of more than `seconds` are taken for endless; 0: none are.
void watchdog_start(int64_t seconds);
void watchdog_stop(void);

// From here on `look` is called too, with `context` and the deadline, from the watchdog's thread, and returns
// what has gone wrong (on the device, say) or NULL. NULL: no longer.
void watchdog_look(const char *(*look)(void *context, double seconds), void *context);

// Around a wait for other processes: `what` (kept by address) names the phase; NULL: one that may take as
// long as it takes.
void watchdog_enter(const char *what);
void watchdog_leave(void);

#ifdef __cplusplus
}
#endif
