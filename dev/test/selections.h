// What the selections of a computation picked and what they were made from, recorded while it runs, and how near to
// a tie they were.
#pragma once
#include "test.h"

// What a layer's selection was made from, and what came out.
typedef struct {
    LighthouseShape shape;
    int32_t *positions; // [batch, heads, pyramid]
    double *scores;     // [batch, heads + key_score_heads, pyramid]
} Selection;

// Of all micro-steps, one after the other, each layer with selection.
typedef struct {
    Selection *list;
    int count;
} Selections;

// From here on the device's selections are also kept, at the end of the list, which the caller frees; one list
// at a time.
void record_selections(Device *device, Selections *into);
void stop_recording(void);

// One with room for what the shape has.
Selection selection_of(const LighthouseShape *shape);
void free_selection(Selection *selection);
void free_selections(Selections *selections);

// Elements of a selection's positions and of its scores.
size_t position_count(const LighthouseShape *shape);
size_t score_count(const LighthouseShape *shape);

// How near the picks of one level of a chunk, by queries' and by keys' scores, were to a tie: how far the best
// of what was left is from the last one taken, relative to it. `row` counts batch · heads.
double cut_gap(const Selection *selection, int64_t row, int64_t chunk, int level);

double smallest_gap(const Selections *selections);

// Two computations' scores differ by rounding. Where two are nearer to each other than that, the computations
// rightly pick another, and all that follows is another function. So what is compared has no such near-ties:
// this is the least gap, and scores must agree to half of it.
double selection_margin(const Device *device);
