#include "run/schedule.h"

#include <math.h>

const char *const schedule_names[] = {"constant", "linear", "cosine", "wsd", NULL};

double schedule_learning_rate(const Schedule *schedule, int64_t step) {
    if (step < schedule->warmup_steps)
        return schedule->peak * (double)(step + 1) / (double)schedule->warmup_steps;
    // The decay goes from step `first`, the last with the peak, to step `last`.
    const int64_t last = schedule->steps - 1;
    int64_t first = max_i64(schedule->warmup_steps - 1, 0);
    if (schedule->kind == SCHEDULE_WSD)
        first = max_i64(first, last - llround(schedule->decay_frac * (double)schedule->steps));
    if (schedule->kind == SCHEDULE_CONSTANT || step <= first) return schedule->peak;
    const double progress = step >= last ? 1 : (double)(step - first) / (double)(last - first);
    const double remaining =
        schedule->kind == SCHEDULE_COSINE ? 0.5 * (1 + cos(3.141592653589793 * progress)) : 1 - progress;
    return schedule->peak * (schedule->final_frac + (1 - schedule->final_frac) * remaining);
}
