#include "selections.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t position_count(const LighthouseShape *shape) {
    return (size_t)(shape->batch * shape->heads * shape->pyramid);
}

size_t score_count(const LighthouseShape *shape) {
    return (size_t)(shape->batch * score_rows(shape) * shape->pyramid);
}

Selection selection_of(const LighthouseShape *shape) {
    return (Selection){*shape, host_allocate(position_count(shape), sizeof(int32_t), "positions"),
                       host_allocate(score_count(shape), sizeof(double), "scores")};
}

void free_selection(Selection *selection) {
    free(selection->positions);
    free(selection->scores);
}

void free_selections(Selections *selections) {
    for (int i = 0; i < selections->count; i++) free_selection(&selections->list[i]);
    free(selections->list);
    *selections = (Selections){0};
}

// --- recording ------------------------------------------------------------------------------------------

// The device's operations, of which the selection also keeps what it did: layers share the scores' memory,
// and micro-steps that of the positions.
static struct {
    Device *device;
    const Ops *usual;
    Ops ops;
    Selections *into;
} recorder;

static void select_and_keep(int32_t *positions, const void *scores, const LighthouseShape *shape,
                            Stream *stream) {
    Device *device = recorder.device;
    Selections *into = recorder.into;
    const size_t count = position_count(shape);
    recorder.usual->selection.select(positions, scores, shape, stream);
    into->list = realloc(into->list, (size_t)(into->count + 1) * sizeof(Selection));
    if (!into->list) fatal("no memory for a selection");
    Selection *kept = &into->list[into->count++];
    *kept = (Selection){.shape = *shape, .positions = host_allocate(count, sizeof(int32_t), "positions")};
    device->download(device, kept->positions, positions, count * sizeof(int32_t));
    kept->scores = download(device, scores, accumulator_type(device->ops->storage), score_count(shape));
}

void record_selections(Device *device, Selections *into) {
    recorder.device = device;
    recorder.usual = device->ops;
    recorder.ops = *device->ops;
    recorder.ops.selection.select = select_and_keep;
    recorder.into = into;
    device->ops = &recorder.ops;
}

void stop_recording(void) {
    recorder.device->ops = recorder.usual;
}

// --- near-ties ------------------------------------------------------------------------------------------

// Takes the `wanted` largest scores off what is left; how far the next one is from the last of them,
// relative to it.
static double take_largest(const double *scores, bool *left, int64_t count, int64_t wanted) {
    double last = 0;
    for (int64_t taken = 0;; taken++) {
        int64_t largest = -1;
        for (int64_t i = 0; i < count; i++)
            if (left[i] && (largest < 0 || scores[i] > scores[largest])) largest = i;
        if (largest < 0) return INFINITY;
        if (taken == wanted) return (last - scores[largest]) / last;
        last = scores[largest];
        left[largest] = false;
    }
}

double cut_gap(const Selection *selection, int64_t row, int64_t chunk, int level) {
    const LighthouseShape *shape = &selection->shape;
    const int64_t batch = row / shape->heads, head = row % shape->heads;
    const int64_t key_row = shape->heads + head / (shape->heads / shape->key_score_heads);
    const int64_t count = level_entries(shape, level) / shape->chunks;
    const int64_t first = level_start(shape, level) + chunk * count;
    const double *scores = selection->scores + batch * score_rows(shape) * shape->pyramid + first;
    bool *left = host_allocate((size_t)count, sizeof(bool), "candidates");
    for (int64_t i = 0; i < count; i++) left[i] = selection->positions[row * shape->pyramid + first + i] >= 0;
    const double by_query = take_largest(scores + head * shape->pyramid, left, count, shape->tile / 2);
    const double by_key = take_largest(scores + key_row * shape->pyramid, left, count, shape->tile / 2);
    free(left);
    return fmin(by_query, by_key);
}

double smallest_gap(const Selections *selections) {
    double smallest = INFINITY;
    for (int i = 0; i < selections->count; i++) {
        const LighthouseShape *shape = &selections->list[i].shape;
        for (int64_t row = 0; row < shape->batch * shape->heads; row++)
            for (int64_t chunk = 0; chunk < shape->chunks; chunk++)
                for (int level = 1; level < shape->levels; level++)
                    smallest = fmin(smallest, cut_gap(&selections->list[i], row, chunk, level));
    }
    return smallest;
}

double selection_margin(const Device *device) {
    return device->ops->storage == STORAGE_FLOAT64 ? 1e-12 : 1e-5;
}
