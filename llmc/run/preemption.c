#include "run/preemption.h"

#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t requested;
static double limit_end; // on the monotonic clock; 0: none

static void ask(int signal) {
    if (requested) _exit(128 + signal); // the exit code by which a shell reports a death by signal
    requested = signal;
}

void preemption_watch(double limit_minutes) {
    static const int signals[] = {SIGTERM, SIGUSR1, SIGINT};
    struct sigaction action = {0};
    action.sa_handler = ask;
    action.sa_flags = SA_RESTART;
    for (size_t i = 0; i < COUNT_OF(signals); i++) sigaction(signals[i], &action, NULL);
    if (limit_minutes > 0) limit_end = seconds_now() + 60 * limit_minutes;
}

int preemption_requested(void) {
    if (requested) return requested;
    return limit_end > 0 && seconds_now() >= limit_end ? SIGALRM : 0;
}

const char *preemption_name(int request) {
    switch (request) {
        case SIGTERM: return "SIGTERM";
        case SIGUSR1: return "SIGUSR1";
        case SIGINT: return "SIGINT";
        default: return "the time limit";
    }
}
