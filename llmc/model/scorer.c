#include "model/scorer.h"

static void score_by_norms(Device *device, const LighthouseShape *s, void *scores, const void *qkv) {
    device->ops->rope.norms(scores, s->pyramid, qkv, s->batch, s->seq_len, s->heads + 2 * s->kv_heads,
                            s->heads + s->kv_heads, s->head_dim, device->stream);
}

const char *const scorer_names[] = {"norm", NULL};
const Scorer scorers[] = {
    {.by_rope = true, .score = score_by_norms}, // norm: the Euclidean norms, as published
};
