#include "model/flops.h"

// Pairs of a query and a key it sees, of a causal sequence.
static double causal_pairs(int64_t length) {
    return (double)length * ((double)length + 1) / 2;
}

FlopsPerToken flops_per_token(const ModelConfig *config, int64_t seq_len, int64_t span,
                              double lighthouse_layers, int64_t entries) {
    const double forward_and_backward = 3, multiply_add = 2, products = 2;
    const double query_dim = (double)(config->heads * head_dim(config));
    const double layer_weights = (double)config->dim * (double)qkv_dim(config) +
                                 query_dim * (double)config->dim +
                                 3 * (double)config->dim * (double)config->ffn_dim;
    const double weights =
        (double)config->layers * layer_weights + (double)config->vocab_size * (double)config->dim;
    const double dense_pairs = (double)seq_len / (double)span * causal_pairs(span);
    const double pairs = ((double)config->layers - lighthouse_layers) * dense_pairs +
                         lighthouse_layers * causal_pairs(entries);
    FlopsPerToken flops;
    flops.linear = forward_and_backward * multiply_add * weights;
    flops.attention = forward_and_backward * multiply_add * products * query_dim * pairs / (double)seq_len;
    return flops;
}
