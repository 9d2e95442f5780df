#include "model/config.h"

#include <string.h>

#define THETA 10000.0
#define EPS   1e-5

// 530M is the published model (arXiv 2605.06554); 1B and 8B have the shapes of Llama 3.2 1B and Llama 3.1 8B.
// The small ones are for text as bytes: 256 byte values and a document separator, rounded up to 264.
static const struct {
    const char *name;
    ModelConfig config;
} presets[] = {
    // name    vocab  dim layers heads kv  ffn
    {"tiny", {264, 128, 6, 4, 2, 384, THETA, EPS}},
    {"10M", {264, 384, 6, 6, 6, 1024, THETA, EPS}},
    {"85M", {264, 768, 12, 6, 6, 2048, THETA, EPS}},
    {"530M", {128256, 1024, 30, 8, 8, 1536, THETA, EPS}},
    {"1B", {128256, 2048, 16, 32, 8, 8192, 500000.0, EPS}},
    {"8B", {128256, 4096, 32, 32, 8, 14336, 500000.0, EPS}},
};

const ModelConfig *model_preset(const char *name) {
    for (size_t i = 0; i < COUNT_OF(presets); i++)
        if (!strcmp(presets[i].name, name)) return &presets[i].config;
    return NULL;
}

const char *model_preset_names(void) {
    static char names[128];
    names[0] = 0;
    for (size_t i = 0; i < COUNT_OF(presets); i++) {
        if (i > 0) strcat(names, "|");
        strcat(names, presets[i].name);
    }
    return names;
}

static void check_multiple(const char *option, int64_t value, int64_t alignment) {
    if (value % alignment == 0) return;
    int64_t above = divide_up(value, alignment) * alignment;
    fatal("%s %ld: on this device it must be a multiple of %ld; %ld is the next", option, (long)value,
          (long)alignment, (long)above);
}

void model_config_check(const ModelConfig *config, int64_t alignment) {
    if (config->dim % config->heads != 0)
        fatal("--dim %ld is not a multiple of --heads %ld", (long)config->dim, (long)config->heads);
    if (config->heads % config->kv_heads != 0)
        fatal("--heads %ld is not a multiple of --kv-heads %ld: every key head serves the same number of "
              "query heads",
              (long)config->heads, (long)config->kv_heads);
    if (head_dim(config) % 2 != 0)
        fatal("--dim %ld / --heads %ld gives heads of %ld: rotary positions need an even number",
              (long)config->dim, (long)config->heads, (long)head_dim(config));
    check_multiple("--vocab-size", config->vocab_size, alignment);
    check_multiple("--ffn-dim", config->ffn_dim, alignment);
    check_multiple("--dim / --heads", head_dim(config), alignment);
}
