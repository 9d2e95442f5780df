// What the tests of Lighthouse attention share: shapes, a layer on a device, what it is given, and how it is run.
#pragma once
#include "dev/test/selections.h"

#include "model/lighthouse.h"

// --- shapes ---------------------------------------------------------------------------------------------

// A random number from low to high, both among them.
int64_t between(int64_t low, int64_t high);

// Of settings that have to be valid.
LighthouseShape shape_of(int64_t levels, int64_t pool, int64_t topk, int64_t tile, int64_t batch,
                         int64_t seq_len, int heads, int kv_heads, int head_dim);

// The shape of settings with these levels and this tile, and no more of them than that takes.
LighthouseShape shape_with(int levels, int tile);

// A valid shape with these levels and pool, and all else random; head_dim 8.
LighthouseShape random_shape(int64_t levels, int64_t pool);

bool is_supported(Device *device, const LighthouseShape *shape);

// The pool, and the tokens that an entry of a level covers.
int64_t pool_of(const LighthouseShape *shape);
int64_t covered_by(const LighthouseShape *shape, int level);

// Elements of the layer's arrays: all queries, keys and values, all outputs, the outputs of the selected
// entries, the rotary angles. And rows of scores.
size_t qkv_count(const LighthouseShape *s);
size_t out_count(const LighthouseShape *s);
size_t sub_out_count(const LighthouseShape *s);
size_t angle_count(const LighthouseShape *s);
size_t all_score_rows(const LighthouseShape *s);

// --- a layer on a device --------------------------------------------------------------------------------

typedef struct {
    Device *device;
    LighthouseShape shape;
    AttentionPlan inner;
    LighthouseLayer layer;
    void *scores, *qkv, *out, *grad_qkv, *grad_out, *angles, *scratch, *workspace;
} Layer;

Layer layer_open(Device *device, const LighthouseShape *shape);
void layer_close(Layer *l);

// A layer with random positions.
Layer random_layer(Device *device, const LighthouseShape *shape);

StorageType layer_storage(const Layer *l);
StorageType layer_accumulator(const Layer *l);

// How far a sum may be off by rounding, relative to it.
double rounding_of(StorageType storage);

// Memory of the device; fatal if there is none.
void *take_memory(Device *device, size_t count, StorageType type);

void set_positions(const Layer *l, const int32_t *positions);

// --- what it is given -----------------------------------------------------------------------------------
// The caller frees all that is returned, here and below.

// Standard normal values that bfloat16 holds.
double *random_values(size_t count);

// Turns of all heads at all positions, as the cosines and sines that rope wants; rounded to float.
double *random_angles(const LighthouseShape *shape);

typedef enum { NORMAL, EQUAL, FEW_VALUES, EXTREMES, ALL_NAN, SCORE_KINDS } ScoreKind;

// Level-0 scores [batch, heads + kv_heads, seq_len], as float holds them.
double *make_scores(const LighthouseShape *shape, ScoreKind kind);

// What float64 selects from random scores.
int32_t *random_positions(const LighthouseShape *shape);

// --- running it -----------------------------------------------------------------------------------------

// Positions by the device's selection from level-0 scores [batch, heads + kv_heads, seq_len].
int32_t *select_by(Device *device, const LighthouseShape *shape, const double *level_0);

// Turns queries and keys, if there are angles, and leaves their norms in the scores.
void run_rotation(const Layer *l, const double *qkv, const double *angles);

// Picks by the norms that the rotation left.
int32_t *run_selection(const Layer *l);

// The layer's output on qkv, with the positions it has.
double *run_forward(const Layer *l, const double *qkv, const double *angles);

// The gradient of qkv as it was before it was turned, after a forward with the same angles.
double *run_backward(const Layer *l, const double *grad_out, bool turned);
