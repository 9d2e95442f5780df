#include "parallel/watchdog.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

// Each process has one watchdog.
static struct {
    pthread_t thread;
    double deadline;      // seconds
    pthread_mutex_t lock; // guards look and context
    const char *(*look)(void *context, double seconds);
    void *context;
    atomic_bool runs;
    _Atomic(const char *) phase; // of the wait under way; NULL: none, or one without a deadline
    _Atomic(double) since;       // when that wait began: seconds_now
} watchdog = {.lock = PTHREAD_MUTEX_INITIALIZER};

// Ends the process without running exit handlers: those could wait for the same ranks in vain.
NORETURN static void end(void) {
    fflush(NULL);
    _exit(1);
}

static void *watch(void *unused) {
    (void)unused;
    while (watchdog.runs) {
        sleep(1);
        const char *phase = watchdog.phase;
        const double waited = seconds_now() - watchdog.since;
        if (phase && watchdog.phase == phase && waited > watchdog.deadline) {
            report_error("stuck: waiting for other ranks for %.0f seconds in: %s (--collective-timeout %.0f)",
                         waited, phase, watchdog.deadline);
            end();
        }
        pthread_mutex_lock(&watchdog.lock);
        const char *trouble = watchdog.look ? watchdog.look(watchdog.context, watchdog.deadline) : NULL;
        pthread_mutex_unlock(&watchdog.lock);
        if (trouble) {
            report_error("%s", trouble);
            end();
        }
    }
    return NULL;
}

void watchdog_look(const char *(*look)(void *context, double seconds), void *context) {
    pthread_mutex_lock(&watchdog.lock);
    watchdog.look = look;
    watchdog.context = context;
    pthread_mutex_unlock(&watchdog.lock);
}

void watchdog_start(int64_t seconds) {
    if (watchdog.runs) return;
    watchdog.deadline = seconds > 0 ? (double)seconds : INFINITY;
    watchdog.runs = true;
    if (pthread_create(&watchdog.thread, NULL, watch, NULL) != 0) fatal("cannot start the watchdog's thread");
}

void watchdog_stop(void) {
    if (!watchdog.runs) return;
    watchdog.runs = false;
    pthread_join(watchdog.thread, NULL);
}

void watchdog_enter(const char *what) {
    watchdog.since = seconds_now();
    watchdog.phase = what;
}

void watchdog_leave(void) {
    watchdog.phase = NULL;
}
