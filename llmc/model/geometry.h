// The geometry of Lighthouse attention: which settings are valid at which length, and the shape they make.
// Integers only, no device.
#pragma once
#include "device/ops.h"

// The options --levels, --pool, --topk and --topk-tile.
typedef struct {
    int64_t levels, pool, topk, tile;
} LighthouseSettings;

// Why these settings do not work at this length, with the nearest values that do, in `reason`; false if they
// do not. The rules: pool a power of two, at least 2; levels at least 2; tile even, at least 2*pool; topk a
// multiple of tile; pool^(levels-1) divides seq_len; the topk/tile chunks divide the coarsest level's entries
// into equal parts of at least tile.
bool lighthouse_valid(const LighthouseSettings *settings, int64_t seq_len, char *reason, size_t reason_size);

// The shape of valid settings.
LighthouseShape lighthouse_shape(const LighthouseSettings *settings, int64_t batch, int64_t seq_len,
                                 int heads, int kv_heads, int head_dim);

// The part of it that each of `size` context-parallel ranks has (llmc/parallel/sequence_parts.h): whole
// chunks, so that each rank selects on its own exactly what one would.
LighthouseShape lighthouse_part(LighthouseShape whole, int size);

// Elements of what crosses from piece to piece of sequences that a context-parallel group holds: ops.h, halo.
int64_t lighthouse_halo_elements(const LighthouseShape *shape);
