// Requests to stop the run: any signal that announces the end of the process (a scheduler's warning, Ctrl-C, a
// limit of the machine), or the end of a time limit. Requests within five seconds of the first are one with it,
// whatever their kind: launchers, schedulers and service managers send several at once.
#pragma once
#include "parallel/communicator.h"

// The exit code of a run that was asked to stop and can be resumed (EX_TEMPFAIL).
enum { PREEMPTED_EXIT_CODE = 75 };

// The first line of main, before any thread is started: from here on signals are requests, even those that were
// ignored or blocked when the process was started (but a hangup ignored then, by nohup say, stays ignored). They
// are recorded; one later than five seconds after the first ends the process at once (exit code 128 + its number).
// Writing to a pipe without a reader, or to a file that may not grow, is an error of that call and nothing more.
void preemption_listen(void);

// Once MPI has started (mpirun may hang where a process ends while it starts): from here to preemption_begin a
// request, also one that came already, ends the process at once with PREEMPTED_EXIT_CODE: no step is lost yet.
void preemption_start(void);

// The time limit counts from here; it acts after the first step. 0: none.
void preemption_limit(double minutes);

// Just before the first step, by all ranks together: from here on requests are only recorded again. Waits without a
// deadline for all ranks. Returns a request of any rank that came just now, the same on all; 0: none.
int preemption_begin(const Communicator *communicator);

// The request so far: the number of the first signal, or TIME_LIMIT_REQUEST; 0: none. Cheap, and any thread may ask.
enum { TIME_LIMIT_REQUEST = -1 };
int preemption_requested(void);

// The request of the lowest rank that has one, the same on all; 0: none. All ranks call it together.
int preemption_agree(const Communicator *communicator, const char *what);

// A request's name, for messages: "SIGTERM", "the time limit", …
const char *preemption_name(int request);
