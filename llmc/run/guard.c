#include "run/guard.h"

#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

Guard guard_create(const GuardSettings *settings) {
    Guard guard = {.settings = *settings};
    guard.losses = host_allocate((size_t)settings->outlier_window, sizeof(double), "the last losses");
    guard.grad_norms =
        host_allocate((size_t)settings->outlier_window, sizeof(double), "the last gradient norms");
    return guard;
}

void guard_destroy(Guard *guard) {
    free(guard->losses);
    free(guard->grad_norms);
    memset(guard, 0, sizeof(*guard));
}

static void remember(Guard *guard, double loss, double grad_norm) {
    guard->losses[guard->next] = loss;
    guard->grad_norms[guard->next] = grad_norm;
    guard->next = (guard->next + 1) % guard->settings.outlier_window;
    guard->count = min_i64(guard->count + 1, guard->settings.outlier_window);
}

static bool stands_out(const Guard *guard, const double *window, double value) {
    const double n = (double)guard->count;
    double mean = 0, square = 0;
    for (int64_t i = 0; i < guard->count; i++) mean += window[i] / n;
    for (int64_t i = 0; i < guard->count; i++) square += (window[i] - mean) * (window[i] - mean) / n;
    return value > mean + guard->settings.skip_outliers * sqrt(square);
}

GuardVerdict guard_judge(Guard *guard, double loss, double grad_norm) {
    const GuardSettings *s = &guard->settings;
    if (!isfinite(loss) || !isfinite(grad_norm))
        return ++guard->nonfinite > s->max_nonfinite ? GUARD_STOP : GUARD_NONFINITE;
    guard->nonfinite = 0;
    const bool judges = s->skip_outliers > 0 && guard->count >= divide_up(s->outlier_window, 2);
    const bool outlier =
        judges && (stands_out(guard, guard->losses, loss) || stands_out(guard, guard->grad_norms, grad_norm));
    remember(guard, loss, grad_norm);
    return outlier ? GUARD_OUTLIER : GUARD_UPDATE;
}

// --- in a checkpoint ------------------------------------------------------------------------------------

// The values in `window` (losses or gradient norms) as a JSON list, oldest first.
static cJSON *window_record(const Guard *guard, const double *window) {
    cJSON *list = cJSON_CreateArray();
    const int64_t size = guard->settings.outlier_window;
    for (int64_t i = 0; i < guard->count; i++)
        cJSON_AddItemToArray(list,
                             cJSON_CreateNumber(window[(guard->next - guard->count + i + size) % size]));
    return list;
}

cJSON *guard_record(const Guard *guard) {
    cJSON *record = cJSON_CreateObject();
    cJSON_AddNumberToObject(record, "nonfinite_in_a_row", (double)guard->nonfinite);
    cJSON_AddItemToObject(record, "losses", window_record(guard, guard->losses));
    cJSON_AddItemToObject(record, "grad_norms", window_record(guard, guard->grad_norms));
    return record;
}

void guard_restore(Guard *guard, const cJSON *record) {
    const cJSON *losses = cJSON_GetObjectItemCaseSensitive(record, "losses");
    const cJSON *grad_norms = cJSON_GetObjectItemCaseSensitive(record, "grad_norms");
    int64_t nonfinite;
    if (json_integer(cJSON_GetObjectItemCaseSensitive(record, "nonfinite_in_a_row"), &nonfinite))
        guard->nonfinite = nonfinite;
    const cJSON *loss = losses ? losses->child : NULL, *grad_norm = grad_norms ? grad_norms->child : NULL;
    for (; loss && grad_norm; loss = loss->next, grad_norm = grad_norm->next)
        if (cJSON_IsNumber(loss) && cJSON_IsNumber(grad_norm))
            remember(guard, loss->valuedouble, grad_norm->valuedouble);
}
