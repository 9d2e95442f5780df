// One head's selection as a forest of entries in an order, and what holds of every selection.
#pragma once
#include "dev/test/selection/layer.h"

// One query head's selection, and what it was made from.
typedef struct {
    const LighthouseShape *shape;
    const int32_t *positions;                // [pyramid]
    const double *query_scores, *key_scores; // of level 0
    int64_t head;                            // for messages
} Picture;

typedef struct {
    int level;
    int64_t index;
} EntryName;

bool is_parent(const Picture *p, int level, int64_t index);

// The entries in the order of their positions; where there is none, level -1. The caller frees it.
EntryName *sequence_of(const Picture *p);

// Checks every head of a selection from level-0 scores [batch, heads + kv_heads, seq_len]: which entries there
// are, in which order, and that exactly the candidates of largest scores are parents.
void check_selection(const LighthouseShape *shape, const int32_t *positions, const double *level_0);
