// Notices when a process waits for others without end, and ends it with a line that says in which phase: the
// launcher then ends the others. A thread of its own looks once a second.
#pragma once
#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

// Starts it: waits of more than `seconds` are taken for endless; 0: none are. `look`, if not NULL, is called
// with `context` from the watchdog's thread and returns what has gone wrong (on the device, say) or NULL; its
// second argument is the deadline.
void watchdog_start(int64_t seconds, const char *(*look)(void *context, double seconds), void *context);
void watchdog_stop(void);

// Around a wait for other processes: `what` (kept by address) names the phase.
void watchdog_enter(const char *what);
void watchdog_leave(void);

#ifdef __cplusplus
}
#endif
