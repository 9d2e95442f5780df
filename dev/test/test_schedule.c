// Which steps and layers are dense, as the options say it; and how long the steps that are left will take.
#include "test.h"

#include "run/logger.h"
#include "training/attention_schedule.h"

#include <string.h>

enum { LAYERS = 5 };

static AttentionSchedule schedule_of(const char *dense_layers, int64_t every, int64_t first) {
    Options options = {.selection = true,
                       .dense_layers = dense_layers,
                       .dense_every = every,
                       .dense_first = first,
                       .dense_span = 16};
    options.config.layers = LAYERS;
    return attention_schedule_create(&options);
}

// Each step on its own, by the rule as it is told to users.
static void steps_follow_the_rule(void *unused) {
    (void)unused;
    enum { STEPS = 40 };
    for (int64_t every = 0; every < 6; every++)
        for (int64_t first = 0; first < 6; first++) {
            AttentionSchedule s = schedule_of("0", every, first);
            int64_t before[STEPS + 1] = {0};
            for (int64_t step = 0; step < STEPS; step++) {
                const bool dense = step < first || (every > 0 && (step + 1) % every == 0);
                check((attention_schedule_type(&s, step) == DENSE_STEP) == dense,
                      "every %ld, first %ld: step %ld", (long)every, (long)first, (long)step);
                before[step + 1] = before[step] + dense;
            }
            for (int from = 0; from <= STEPS; from++)
                for (int to = from; to <= STEPS; to++)
                    check(attention_schedule_dense_steps(&s, from, to) == before[to] - before[from],
                          "every %ld, first %ld: %ld dense steps from %d to %d", (long)every, (long)first,
                          (long)attention_schedule_dense_steps(&s, from, to), from, to);
            attention_schedule_free(&s);
        }
}

static void dense_layers_rotate(void *unused) {
    (void)unused;
    static const char *const expected[] = {"D--D-", "--D--", "-D--D", "D--D-"}; // of rotate:3
    AttentionSchedule s = schedule_of("rotate:3", 0, 0);
    for (int64_t step = 0; step < (int64_t)COUNT_OF(expected); step++) {
        LayerKind kinds[LAYERS];
        attention_schedule_layers(&s, step, kinds);
        for (int layer = 0; layer < LAYERS; layer++)
            check((kinds[layer] == LAYER_DENSE) == (expected[step][layer] == 'D'), "step %ld, layer %d",
                  (long)step, layer);
    }
    check(attention_schedule_dense_layers(&s) == LAYERS / 3.0, "%g dense layers on average",
          attention_schedule_dense_layers(&s));
    check(attention_schedule_kinds_of(&s, 1) == (1u << LAYER_DENSE | 1u << LAYER_LIGHTHOUSE),
          "kinds of a layer");
    attention_schedule_free(&s);
}

// Where no layer ever selects there is nothing that dense steps could change: all are usual, over whole sequences.
static void without_selection_all_steps_are_usual(void *unused) {
    (void)unused;
    Options off = {.selection = false, .dense_layers = "none", .dense_every = 2, .dense_first = 3};
    off.config.layers = LAYERS;
    AttentionSchedule schedules[] = {schedule_of("rotate:1", 2, 3), schedule_of("0,1,2,3,4", 2, 3),
                                     attention_schedule_create(&off)};
    for (size_t i = 0; i < COUNT_OF(schedules); i++) {
        AttentionSchedule *s = &schedules[i];
        LayerKind kinds[LAYERS];
        attention_schedule_layers(s, 1, kinds);
        for (int layer = 0; layer < LAYERS; layer++)
            check(kinds[layer] == LAYER_DENSE, "layer %d selects", layer);
        check(attention_schedule_type(s, 1) == USUAL_STEP && attention_schedule_dense_steps(s, 0, 9) == 0 &&
                  !attention_schedule_selects(s),
              "schedule %zu has dense steps", i);
        attention_schedule_free(s);
    }
}

static void time_left_knows_the_types(void *unused) {
    (void)unused;
    Logger logger = {0};
    StepReport report = {.left = {{7, 1e9}, {3, 4e9}}};
    logger.usual_seconds[USUAL_STEP] = 2;
    double left = logger_seconds_left(&logger, &report);
    check(left == 7 * 2 + 3 * 8, "before the first dense step: %g", left); // four times the work
    logger.usual_seconds[DENSE_STEP] = 5;
    left = logger_seconds_left(&logger, &report);
    check(left == 7 * 2 + 3 * 5, "after it: %g", left);
    logger.usual_seconds[USUAL_STEP] = 0;
    left = logger_seconds_left(&logger, &report);
    check(left == 7 * 1.25 + 3 * 5, "before the first usual one: %g", left);
    const StepReport last = {.left = {{0, 1e9}, {0, 4e9}}};
    check(logger_seconds_left(&logger, &last) == 0, "after the last step");
}

void test_schedule(void) {
    test_run("schedule: dense steps follow the rule and are counted", steps_follow_the_rule, NULL);
    test_run("schedule: dense layers rotate", dense_layers_rotate, NULL);
    test_run("schedule: without selection all steps are usual", without_selection_all_steps_are_usual, NULL);
    test_run("schedule: the time left knows the types of steps", time_left_knows_the_types, NULL);
}
