#include "parallel/watchdog.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

// What is watched: an activity that has a deadline and, while it is under way, a number of its own.
typedef struct {
    double deadline;        // seconds
    atomic_uint_fast64_t n; // 0: none is under way
    // the thread's own
    uint64_t seen; // n when it looked last
    double seconds;
} Watch;

// Each process has one watchdog.
static struct {
    pthread_t thread;
    Watch wait, step;
    _Atomic(const char *) phase; // of the wait under way
    uint64_t waits;              // begun so far
    pthread_mutex_t lock;        // guards look and context
    const char *(*look)(void *context, double seconds);
    void *context;
    atomic_bool runs;
} watchdog = {.lock = PTHREAD_MUTEX_INITIALIZER};

// Ends the process without running exit handlers: those could wait for the same ranks in vain.
NORETURN static void end(void) {
    fflush(NULL);
    _exit(1);
}

// Called once a second: whether the same activity has been under way beyond its deadline.
static bool is_late(Watch *watch) {
    const uint64_t now = watch->n;
    watch->seconds = now != 0 && now == watch->seen ? watch->seconds + 1 : 0;
    watch->seen = now;
    return watch->seconds > watch->deadline;
}

static void check_deadlines(void) {
    const char *phase = watchdog.phase;
    if (is_late(&watchdog.wait)) {
        report_error("stuck: waiting for other ranks for %.0f seconds in: %s (--collective-timeout %.0f)",
                     watchdog.wait.seconds, phase, watchdog.wait.deadline);
        end();
    }
    if (is_late(&watchdog.step)) {
        report_error("stuck: step %ld is not done after %.0f seconds (--step-timeout %.0f)",
                     (long)watchdog.step.seen, watchdog.step.seconds, watchdog.step.deadline);
        end();
    }
}

static void *watch(void *unused) {
    (void)unused;
    while (watchdog.runs) {
        sleep(1);
        check_deadlines();
        pthread_mutex_lock(&watchdog.lock);
        const char *trouble = watchdog.look ? watchdog.look(watchdog.context, watchdog.wait.deadline) : NULL;
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

void watchdog_start(int64_t wait_seconds, int64_t step_seconds) {
    if (watchdog.runs) return;
    watchdog.wait.deadline = wait_seconds > 0 ? (double)wait_seconds : INFINITY;
    watchdog.step.deadline = step_seconds > 0 ? (double)step_seconds : INFINITY;
    watchdog.runs = true;
    if (pthread_create(&watchdog.thread, NULL, watch, NULL) != 0) fatal("cannot start the watchdog's thread");
}

void watchdog_stop(void) {
    if (!watchdog.runs) return;
    watchdog.runs = false;
    pthread_join(watchdog.thread, NULL);
}

void watchdog_enter(const char *what) {
    watchdog.phase = what;
    watchdog.wait.n = what ? ++watchdog.waits : 0;
}

void watchdog_leave(void) {
    watchdog.wait.n = 0;
}

void watchdog_step_begins(int64_t step) {
    watchdog.step.n = (uint64_t)step;
}

void watchdog_step_ends(void) {
    watchdog.step.n = 0;
}
