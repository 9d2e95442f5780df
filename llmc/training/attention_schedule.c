#include "training/attention_schedule.h"

#include "run/options_check.h"

#include <stdlib.h>

AttentionSchedule attention_schedule_fixed(int64_t layers, const LayerKind *layer_kinds) {
    AttentionSchedule schedule = {.layers = layers};
    schedule.listed = host_allocate((size_t)layers, sizeof(LayerKind), "layer kinds");
    for (int64_t layer = 0; layer < layers; layer++)
        schedule.listed[layer] = layer_kinds ? layer_kinds[layer] : LAYER_DENSE;
    return schedule;
}

AttentionSchedule attention_schedule_create(const Options *o) {
    AttentionSchedule schedule = attention_schedule_fixed(o->config.layers, NULL);
    if (!o->selection) return schedule;
    bool *dense = host_allocate((size_t)schedule.layers, sizeof(bool), "dense layers");
    options_dense_layers(o, dense);
    for (int64_t layer = 0; layer < schedule.layers; layer++)
        schedule.listed[layer] = dense[layer] ? LAYER_DENSE : LAYER_LIGHTHOUSE;
    free(dense);
    schedule.rotate = options_dense_rotate(o);
    schedule.dense_first = o->dense_first;
    schedule.dense_every = o->dense_every;
    schedule.dense_span = o->dense_span;
    return schedule;
}

void attention_schedule_free(AttentionSchedule *schedule) {
    free(schedule->listed);
    *schedule = (AttentionSchedule){0};
}

// --- one step -------------------------------------------------------------------------------------------

StepType attention_schedule_type(const AttentionSchedule *s, int64_t step) {
    if (!attention_schedule_has_dense_steps(s)) return USUAL_STEP;
    const bool dense = step < s->dense_first || (s->dense_every > 0 && (step + 1) % s->dense_every == 0);
    return dense ? DENSE_STEP : USUAL_STEP;
}

void attention_schedule_layers(const AttentionSchedule *s, int64_t step, LayerKind *kinds) {
    for (int64_t layer = 0; layer < s->layers; layer++) {
        kinds[layer] = s->listed[layer];
        if (s->rotate > 0) kinds[layer] = (layer + step) % s->rotate == 0 ? LAYER_DENSE : LAYER_LIGHTHOUSE;
    }
}

// --- all steps ------------------------------------------------------------------------------------------

LayerKinds attention_schedule_kinds_of(const AttentionSchedule *s, int64_t layer) {
    if (s->rotate == 0) return 1u << s->listed[layer];
    return s->rotate == 1 ? 1u << LAYER_DENSE : 1u << LAYER_DENSE | 1u << LAYER_LIGHTHOUSE;
}

double attention_schedule_dense_layers(const AttentionSchedule *s) {
    if (s->rotate > 0) return (double)s->layers / (double)s->rotate;
    int64_t dense = 0;
    for (int64_t layer = 0; layer < s->layers; layer++) dense += s->listed[layer] == LAYER_DENSE;
    return (double)dense;
}

bool attention_schedule_selects(const AttentionSchedule *s) {
    for (int64_t layer = 0; layer < s->layers; layer++)
        if (attention_schedule_kinds_of(s, layer) & 1u << LAYER_LIGHTHOUSE) return true;
    return false;
}

bool attention_schedule_has_dense_steps(const AttentionSchedule *s) {
    return (s->dense_first > 0 || s->dense_every > 0) && attention_schedule_selects(s);
}

int64_t attention_schedule_dense_steps(const AttentionSchedule *s, int64_t first, int64_t end) {
    if (!attention_schedule_has_dense_steps(s)) return 0;
    int64_t count = max_i64(min_i64(s->dense_first, end) - first, 0);
    const int64_t after = max_i64(first, s->dense_first); // from here on, every so many-th
    if (s->dense_every > 0 && after < end) count += end / s->dense_every - after / s->dense_every;
    return count;
}
