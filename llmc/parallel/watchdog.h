// A thread that checks once a second whether this process has waited for others beyond a deadline. If so it
// prints the phase and ends this process; the launcher then ends the others.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// Starts and stops the watchdog's thread. A wait longer than `seconds` ends the process; 0: no wait does.
void watchdog_start(int64_t seconds);
void watchdog_stop(void);

// From this call on the watchdog's thread also calls `look`, once a second, with `context` and the deadline
// in seconds. It returns a message if something has gone wrong (on the device, say), which ends the process,
// or NULL. A `look` of NULL stops these calls.
void watchdog_look(const char *(*look)(void *context, double seconds), void *context);

// Called before and after a wait for other processes: `what` (kept by address) names the phase; NULL: this
// wait has no deadline.
void watchdog_enter(const char *what);
void watchdog_leave(void);

#ifdef __cplusplus
}
#endif
