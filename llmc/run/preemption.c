#include "run/preemption.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double one_request_seconds = 5; // within them of the first, all requests are one

// Not among them: SIGQUIT and faults, which ask for a core dump, and what stops a process to continue it later.
static const struct {
    int number;
    const char *name;
} signals[] = {
    {SIGHUP, "SIGHUP"},   {SIGINT, "SIGINT"},   {SIGTERM, "SIGTERM"},     {SIGUSR1, "SIGUSR1"},
    {SIGUSR2, "SIGUSR2"}, {SIGXCPU, "SIGXCPU"}, {SIGXFSZ, "SIGXFSZ"},     {SIGALRM, "SIGALRM"},
    {SIGPWR, "SIGPWR"},   {SIGPOLL, "SIGPOLL"}, {SIGVTALRM, "SIGVTALRM"}, {SIGPROF, "SIGPROF"},
};

// Written by the signal handler, which several threads may run at a time.
static atomic_int requested;
static _Atomic(double) first_seconds; // when the first request came: seconds_now; 0: none yet
static atomic_bool ends_at_once;      // between preemption_start and preemption_begin
static double limit_end;              // seconds_now; 0: none

const char *preemption_name(int request) {
    for (size_t i = 0; i < COUNT_OF(signals); i++)
        if (signals[i].number == request) return signals[i].name;
    return "the time limit";
}

// --- the handler, which may call only what is safe in one -------------------------------------------------

static void say(const char *text) {
    if (write(STDOUT_FILENO, text, strlen(text)) < 0) return; // a reader that is gone
}

NORETURN static void end_before_first_step(int number) {
    say("stopped by ");
    say(preemption_name(number));
    say(" before the first step\n");
    _exit(PREEMPTED_EXIT_CODE);
}

// A write beyond the limit of a file's size: the call itself fails too.
static bool is_own_write(int number, const siginfo_t *info) {
    return number == SIGXFSZ && (info->si_code > 0 || info->si_pid == getpid());
}

// The kernel repeats what tells of limits and timers; what it sends for Ctrl-C a person repeats.
static bool insists(int number, const siginfo_t *info) {
    return info->si_code <= 0 || number == SIGINT;
}

static void hear(int number, siginfo_t *info, void *unused) {
    (void)unused;
    if (is_own_write(number, info)) return;
    const int kept = errno;
    const double now = seconds_now();
    double first = 0;
    if (atomic_compare_exchange_strong(&first_seconds, &first, now)) {
        requested = number;
        if (ends_at_once) end_before_first_step(number);
    } else if (now - first > one_request_seconds && insists(number, info)) {
        _exit(128 + number); // the exit code by which a shell reports a death by signal
    }
    errno = kept;
}

// --- listening ------------------------------------------------------------------------------------------

void preemption_listen(void) {
    struct sigaction action = {0}, before;
    sigset_t heard;
    sigemptyset(&heard);
    action.sa_sigaction = hear;
    action.sa_flags = SA_RESTART | SA_SIGINFO;
    for (size_t i = 0; i < COUNT_OF(signals); i++) {
        sigaction(signals[i].number, NULL, &before);
        if (signals[i].number == SIGHUP && before.sa_handler == SIG_IGN) continue;
        sigaction(signals[i].number, &action, NULL);
        sigaddset(&heard, signals[i].number);
    }
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_UNBLOCK, &heard, NULL); // the process that started this one may have blocked them
}

void preemption_start(void) {
    ends_at_once = true;
    if (requested) end_before_first_step(requested);
}

void preemption_limit(double minutes) {
    if (minutes > 0) limit_end = seconds_now() + 60 * minutes;
}

int preemption_requested(void) {
    if (requested) return requested;
    return limit_end > 0 && seconds_now() >= limit_end ? TIME_LIMIT_REQUEST : 0;
}

// --- agreeing -------------------------------------------------------------------------------------------

static int agree(const Communicator *communicator, int mine, const char *what) {
    int *all = host_allocate((size_t)communicator->size, sizeof(int), "the ranks' requests to stop");
    communicator_gather(communicator, all, &mine, sizeof(mine), what);
    int request = 0;
    for (int rank = 0; rank < communicator->size && request == 0; rank++) request = all[rank];
    free(all);
    return request;
}

int preemption_begin(const Communicator *communicator) {
    ends_at_once = false;
    return agree(communicator, requested, NULL);
}

int preemption_agree(const Communicator *communicator, const char *what) {
    return agree(communicator, preemption_requested(), what);
}
