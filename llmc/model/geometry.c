#include "model/geometry.h"

static bool is_power_of_two(int64_t value) {
    return value > 0 && (value & (value - 1)) == 0;
}

static int64_t power_of_two_below(int64_t value) {
    int64_t power = 1;
    while (2 * power <= value) power *= 2;
    return power;
}

// pool^(levels - 1): tokens that an entry of the coarsest level covers; 0 beyond 2^40.
static int64_t coarsest_span(const LighthouseSettings *s) {
    int64_t span = 1;
    for (int64_t level = 1; level < s->levels; level++) {
        span *= s->pool;
        if (span > (int64_t)1 << 40) return 0;
    }
    return span;
}

// "64 and 128 do", or "64 does" for one of them that is zero.
static const char *which_do(char text[64], int64_t below, int64_t above) {
    if (below > 0 && above > 0)
        snprintf(text, 64, "%ld and %ld do", (long)below, (long)above);
    else
        snprintf(text, 64, "%ld does", (long)max_i64(below, above));
    return text;
}

// Names the valid lengths nearest to an invalid seq_len: chunks must be multiples of the coarsest entries'
// span and hold at least a tile of those.
static bool refuse_length(const LighthouseSettings *s, int64_t seq_len, int64_t span, Reason *reason) {
    const int64_t chunks = s->topk >= s->tile && s->topk % s->tile == 0 ? s->topk / s->tile : 1;
    const int64_t unit = span * chunks, below = seq_len / unit * unit, least = unit * s->tile;
    char nearest[64];
    return fail(reason,
                "--seq-len %ld must be a multiple of --pool %ld to the power of --levels %ld - 1, %ld: %s",
                (long)seq_len, (long)s->pool, (long)s->levels, (long)span,
                which_do(nearest, below >= least ? below : 0, max_i64(below + unit, least)));
}

// The budgets nearest to topk whose chunks cut `coarsest` entries into equal parts of at least a tile.
static const char *budgets_around(char text[64], const LighthouseSettings *s, int64_t coarsest) {
    const int64_t most = coarsest / s->tile;
    int64_t below = 0, above = 0;
    for (int64_t n = min_i64(s->topk / s->tile, most); n > 0 && below == 0; n--)
        if (coarsest % n == 0) below = n;
    for (int64_t n = max_i64(1, divide_up(s->topk, s->tile)); n <= most && above == 0; n++)
        if (coarsest % n == 0) above = n;
    return which_do(text, below * s->tile, above * s->tile);
}

static bool budget_valid(const LighthouseSettings *s, int64_t coarsest, Reason *reason) {
    if (coarsest < s->tile)
        return fail(
            reason,
            "the coarsest level has %ld entries, fewer than --topk-tile %ld: take a longer --seq-len, "
            "fewer --levels or a smaller --topk-tile",
            (long)coarsest, (long)s->tile);
    char nearest[64];
    if (s->topk < s->tile || s->topk % s->tile != 0)
        return fail(reason, "--topk %ld must be a multiple of --topk-tile %ld: %s", (long)s->topk,
                    (long)s->tile, budgets_around(nearest, s, coarsest));
    const int64_t chunks = s->topk / s->tile;
    if (coarsest % chunks == 0 && coarsest / chunks >= s->tile) return true;
    return fail(reason,
                "--topk %ld / --topk-tile %ld = %ld chunks must divide the coarsest level's %ld entries into "
                "equal parts of at least %ld; --topk %s",
                (long)s->topk, (long)s->tile, (long)chunks, (long)coarsest, (long)s->tile,
                budgets_around(nearest, s, coarsest));
}

bool lighthouse_valid(const LighthouseSettings *s, int64_t seq_len, Reason *reason) {
    if (s->pool < 2 || !is_power_of_two(s->pool)) {
        const int64_t below = power_of_two_below(max_i64(s->pool, 2));
        return fail(reason, "--pool %ld must be a power of two, at least 2: %ld and %ld are", (long)s->pool,
                    (long)below, (long)(2 * below));
    }
    if (s->levels < 2) return fail(reason, "--levels %ld must be at least 2", (long)s->levels);
    if (s->tile % 2 != 0 || s->tile < 2 * s->pool)
        return fail(reason, "--topk-tile %ld must be even and at least twice --pool %ld: %ld is the nearest",
                    (long)s->tile, (long)s->pool, (long)max_i64(2 * s->pool, s->tile + s->tile % 2));
    const int64_t span = coarsest_span(s);
    if (span == 0 || span > seq_len)
        return fail(
            reason,
            "--pool %ld to the power of --levels %ld - 1 is more than --seq-len %ld: take fewer levels",
            (long)s->pool, (long)s->levels, (long)seq_len);
    if (seq_len % span != 0) return refuse_length(s, seq_len, span, reason);
    return budget_valid(s, seq_len / span, reason);
}

LighthouseShape lighthouse_shape(const LighthouseSettings *settings, int64_t batch, int64_t seq_len,
                                 int heads, int kv_heads, int head_dim) {
    LighthouseShape shape = {0};
    shape.batch = batch;
    shape.seq_len = seq_len;
    shape.heads = heads;
    shape.kv_heads = kv_heads;
    shape.key_score_heads = kv_heads;
    shape.head_dim = head_dim;
    shape.levels = (int)settings->levels;
    while ((int64_t)1 << shape.log2_pool < settings->pool) shape.log2_pool++;
    shape.tile = (int)settings->tile;
    shape.chunks = settings->topk / settings->tile;
    shape.entries =
        level_entries(&shape, shape.levels - 1) + (settings->levels - 1) * settings->pool * settings->topk;
    shape.pyramid = level_start(&shape, shape.levels);
    shape.pieces = 1;
    return shape;
}

LighthouseShape lighthouse_part(LighthouseShape whole, int size) {
    LighthouseShape part = whole;
    if (size == 1) return part;
    part.seq_len /= size;
    part.chunks /= size;
    part.entries /= size;
    part.pyramid = level_start(&part, part.levels);
    part.pieces = 2;
    return part;
}

int64_t lighthouse_halo_elements(const LighthouseShape *shape) {
    return shape->pieces * shape->batch * (shape->levels - 1) * shape->heads * shape->head_dim;
}
