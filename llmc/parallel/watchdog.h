// A thread that checks once a second whether this process has waited for others, or worked on one step, beyond a
// deadline. If so it prints one line and ends this process with code 1; the launcher then ends the others. It
// counts the seconds by its own turns, so time in which the process did not run (it was stopped and continued, or
// its whole machine was) does not count.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// Starts and stops the watchdog's thread. A wait longer than `wait_seconds` ends the process, and so does a step
// longer than `step_seconds`; 0: none does. With both 0 the thread still looks (watchdog_look).
void watchdog_start(int64_t wait_seconds, int64_t step_seconds);
void watchdog_stop(void);

// From this call on the watchdog's thread also calls `look`, once a second, with `context` and the deadline of waits
// in seconds. It returns a message if something has gone wrong (on the device, say), which ends the process,
// or NULL. A `look` of NULL stops these calls.
void watchdog_look(const char *(*look)(void *context, double seconds), void *context);

// Called before and after a wait for other processes: `what` (kept by address) names the phase; NULL: this
// wait has no deadline.
void watchdog_enter(const char *what);
void watchdog_leave(void);

// Called before and after a step, counted from 1.
void watchdog_step_begins(int64_t step);
void watchdog_step_ends(void);

#ifdef __cplusplus
}
#endif
