#include "flops.h"

FlopsPerToken flops_per_token(const ModelConfig *config, int64_t seq_len) {
    const double forward_and_backward = 3, multiply_add = 2;
    const double query_dim = (double)(config->heads * head_dim(config));
    const double layer_weights = (double)config->dim * (double)qkv_dim(config) +
                                 query_dim * (double)config->dim +
                                 3 * (double)config->dim * (double)config->ffn_dim;
    const double weights =
        (double)config->layers * layer_weights + (double)config->vocab_size * (double)config->dim;
    const double keys = ((double)seq_len + 1) / 2; // that a token sees on average
    FlopsPerToken flops;
    flops.linear = forward_and_backward * multiply_add * weights;
    flops.attention = forward_and_backward * multiply_add * (double)config->layers * 2 * query_dim * keys;
    return flops;
}
