#include "model/config.h"

#include "base/names.h"

#define THETA 10000.0
#define EPS   1e-5

// 530M is the published model (arXiv 2605.06554); 1B and 8B have the shapes of Llama 3.2 1B and Llama 3.1 8B.
// The small ones are for text as bytes: 256 byte values and a document separator, rounded up to 264.
const char *const model_preset_names[] = {"tiny", "10M", "85M", "530M", "1B", "8B", NULL};
static const ModelConfig presets[] = {
    // vocab  dim layers heads kv  ffn
    {264, 128, 6, 4, 2, 384, THETA, EPS},           {264, 384, 6, 6, 6, 1024, THETA, EPS},
    {264, 768, 12, 6, 6, 2048, THETA, EPS},         {128256, 1024, 30, 8, 8, 1536, THETA, EPS},
    {128256, 2048, 16, 32, 8, 8192, 500000.0, EPS}, {128256, 4096, 32, 32, 8, 14336, 500000.0, EPS},
};
_Static_assert(COUNT_OF(presets) + 1 == COUNT_OF(model_preset_names), "a shape for each name");

const ModelConfig *model_preset(const char *name) {
    const int index = name_index(model_preset_names, name);
    return index < 0 ? NULL : &presets[index];
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
