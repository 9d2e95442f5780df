// The guard: which updates it skips, and that one restored from a checkpoint judges as the saved one.
#include "test.h"

#include "run/guard.h"
#include "base/json.h"

#include <math.h>
#include <stdlib.h>

static void test_nonfinite(void *unused) {
    (void)unused;
    const GuardSettings settings = {2, 0, 8};
    Guard guard = guard_create(&settings);
    static const struct {
        double loss, grad_norm;
        GuardVerdict verdict;
    } steps[] = {
        {1, 1, GUARD_UPDATE},
        {NAN, 1, GUARD_NONFINITE},
        {1, INFINITY, GUARD_NONFINITE},
        {1e30, 1e30, GUARD_UPDATE}, // skip_outliers is 0: no value is an outlier
        {-INFINITY, 1, GUARD_NONFINITE},
        {1, NAN, GUARD_NONFINITE},
        {NAN, NAN, GUARD_STOP},
    };
    for (size_t i = 0; i < COUNT_OF(steps); i++) {
        const GuardVerdict verdict = guard_judge(&guard, steps[i].loss, steps[i].grad_norm);
        check(verdict == steps[i].verdict, "step %zu: verdict %d, not %d", i, verdict, steps[i].verdict);
    }
    guard_destroy(&guard);
}

// Judges a step with a loss around 2 and a norm around 1, with standard deviation 0.1.
static GuardVerdict judge_usual(Guard *guard) {
    double draws[2];
    do random_fill(draws, 2);
    while (fabs(draws[0]) > 2 || fabs(draws[1]) > 2);
    return guard_judge(guard, 2 + 0.1 * draws[0], 1 + 0.1 * draws[1]);
}

static void test_outliers(void *unused) {
    (void)unused;
    const GuardSettings settings = {2, 6, 40};
    Guard guard = guard_create(&settings);
    for (int i = 0; i < 19; i++) check(judge_usual(&guard) == GUARD_UPDATE, "step %d", i);
    check(guard_judge(&guard, 2.1, 1.1) == GUARD_UPDATE, "the last before half a window");
    check(guard_judge(&guard, 3, 1) == GUARD_OUTLIER, "a loss ten deviations above");
    check(guard_judge(&guard, 1, 0.1) == GUARD_UPDATE, "below is no outlier");
    for (int i = 0; i < 80; i++) check(judge_usual(&guard) == GUARD_UPDATE, "step %d after", i);
    check(guard_judge(&guard, 2, 2) == GUARD_OUTLIER, "a norm ten deviations above");
    check(guard_judge(&guard, NAN, 1) == GUARD_NONFINITE, "NaN is no outlier");
    for (int i = 0; i < 40; i++) guard_judge(&guard, 4, 3);
    check(guard_judge(&guard, 4, 3) == GUARD_UPDATE, "a new level is the usual one in time");
    guard_destroy(&guard);
}

static void test_early_outlier(void *unused) {
    (void)unused;
    const GuardSettings settings = {2, 6, 40};
    Guard guard = guard_create(&settings);
    for (int i = 0; i < 10; i++) judge_usual(&guard);
    check(guard_judge(&guard, 100, 100) == GUARD_UPDATE, "judged by ten steps");
    guard_destroy(&guard);
}

// Saves and restores through JSON text, with any number of steps in the window, with values of all
// magnitudes.
static void test_restored(void *unused) {
    (void)unused;
    const GuardSettings settings = {1000, 1, 7};
    for (int filled = 0; filled < 20; filled++) {
        Guard guard = guard_create(&settings), restored = guard_create(&settings);
        double values[2];
        for (int i = 0; i < filled; i++) {
            random_fill(values, 2);
            guard_judge(&guard, i % 5 == 4 ? NAN : exp(9 * values[0]), exp(values[1]));
        }
        cJSON *record = guard_record(&guard);
        char *text = json_text(record, false);
        cJSON *read = cJSON_Parse(text);
        guard_restore(&restored, read);
        check(restored.nonfinite == guard.nonfinite && restored.count == guard.count, "%d steps: its counts",
              filled);
        for (int i = 0; i < 30; i++) {
            random_fill(values, 2);
            const double loss = i % 6 == 5 ? INFINITY : exp(9 * values[0]), norm = exp(values[1]);
            check(guard_judge(&guard, loss, norm) == guard_judge(&restored, loss, norm),
                  "%d steps, and %d after: another verdict", filled, i);
        }
        cJSON_Delete(record);
        cJSON_Delete(read);
        free(text);
        guard_destroy(&guard);
        guard_destroy(&restored);
    }
}

void test_guard(void) {
    test_run("guard: steps without finite values", test_nonfinite, NULL);
    test_run("guard: outliers", test_outliers, NULL);
    test_run("guard: no outlier before half a window", test_early_outlier, NULL);
    test_run("guard: restored from a checkpoint", test_restored, NULL);
}
