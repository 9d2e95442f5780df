#include "checkpoint/huggingface.h"

#include "checkpoint/json_file.h"

#include <string.h>

// The integers of a model's shape, and the largest value that each may have.
static const struct {
    const char *key;
    size_t offset; // in ModelConfig
    int64_t maximum;
} shape_keys[] = {{"vocab_size", offsetof(ModelConfig, vocab_size), 1 << 30},
                  {"hidden_size", offsetof(ModelConfig, dim), 1 << 20},
                  {"intermediate_size", offsetof(ModelConfig, ffn_dim), 1 << 24},
                  {"num_hidden_layers", offsetof(ModelConfig, layers), 10000},
                  {"num_attention_heads", offsetof(ModelConfig, heads), 10000},
                  {"num_key_value_heads", offsetof(ModelConfig, kv_heads), 10000}};

static const char dtype_key[] = "torch_dtype", rope_theta_key[] = "rope_theta";

// --- writing --------------------------------------------------------------------------------------------

static void add_shape(cJSON *json, const ModelConfig *config) {
    for (size_t i = 0; i < COUNT_OF(shape_keys); i++) {
        const int64_t value = *(const int64_t *)((const char *)config + shape_keys[i].offset);
        cJSON_AddNumberToObject(json, shape_keys[i].key, (double)value);
    }
    cJSON_AddNumberToObject(json, "head_dim", (double)head_dim(config));
}

// Writes the base twice: as rope_theta, and in rope_parameters, which replaced it in transformers 5.
static void add_rope(cJSON *json, const ModelConfig *config) {
    json_add_real(json, rope_theta_key, config->rope_theta);
    cJSON *rope = cJSON_AddObjectToObject(json, "rope_parameters");
    cJSON_AddStringToObject(rope, "rope_type", "default");
    json_add_real(rope, rope_theta_key, config->rope_theta);
}

static void add_token_or_null(cJSON *json, const char *key, int64_t token) {
    if (token < 0)
        cJSON_AddNullToObject(json, key);
    else
        cJSON_AddNumberToObject(json, key, (double)token);
}

cJSON *huggingface_config(const ModelConfig *config, StorageType storage, int64_t seq_len,
                          int64_t separator_token) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_AddArrayToObject(json, "architectures"),
                         cJSON_CreateString("LlamaForCausalLM"));
    cJSON_AddStringToObject(json, "model_type", "llama");
    add_shape(json, config);
    cJSON_AddNumberToObject(json, "max_position_embeddings", (double)seq_len);
    json_add_real(json, "rms_norm_eps", config->norm_eps);
    add_rope(json, config);
    cJSON_AddStringToObject(json, "hidden_act", "silu");
    cJSON_AddFalseToObject(json, "attention_bias");
    cJSON_AddFalseToObject(json, "mlp_bias");
    cJSON_AddFalseToObject(json, "tie_word_embeddings");
    json_add_real(json, "initializer_range", 0.02);
    cJSON_AddTrueToObject(json, "use_cache");
    cJSON_AddStringToObject(json, "dtype", storage_dtype(storage));
    cJSON_AddStringToObject(json, dtype_key, storage_dtype(storage));
    add_token_or_null(json, "bos_token_id", separator_token);
    add_token_or_null(json, "eos_token_id", separator_token);
    cJSON_AddNullToObject(json, "pad_token_id");
    return json;
}

// --- reading --------------------------------------------------------------------------------------------

static bool parse_shape(const cJSON *json, ModelConfig *config, Reason *reason) {
    *config = (ModelConfig){0};
    for (size_t i = 0; i < COUNT_OF(shape_keys); i++) {
        int64_t *value = (int64_t *)((char *)config + shape_keys[i].offset);
        if (!json_integer(cJSON_GetObjectItemCaseSensitive(json, shape_keys[i].key), value) || *value < 1 ||
            *value > shape_keys[i].maximum)
            return fail(reason, "%s has no %s from 1 to %ld", CONFIG_FILE, shape_keys[i].key,
                        (long)shape_keys[i].maximum);
    }
    if (config->dim % config->heads != 0 || config->heads % config->kv_heads != 0)
        return fail(reason, "%s: %ld query heads and %ld key/value heads do not divide a width of %ld",
                    CONFIG_FILE, (long)config->heads, (long)config->kv_heads, (long)config->dim);
    return true;
}

static bool parse_dtype(const cJSON *json, StorageType *storage, Reason *reason) {
    const char *dtype = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, dtype_key));
    for (int type = STORAGE_FLOAT64; dtype && type <= STORAGE_BFLOAT16; type++) {
        *storage = (StorageType)type;
        if (!strcmp(dtype, storage_dtype(*storage))) return true;
    }
    return fail(reason, "%s has no %s of float64, float32 or bfloat16", CONFIG_FILE, dtype_key);
}

bool huggingface_read_config(const char *directory, ModelConfig *config, StorageType *storage,
                             Reason *reason) {
    cJSON *json = json_file_read(directory, CONFIG_FILE, reason);
    const bool good = json && parse_shape(json, config, reason) && parse_dtype(json, storage, reason);
    cJSON_Delete(json);
    return good;
}
