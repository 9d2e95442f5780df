// Checkpoints: a loaded state equals the saved one, equal states give equal files, another model is refused.
#include "checkpoint_fixture.h"

#include "base/json.h"
#include "checkpoint/huggingface.h"

#include <stdlib.h>
#include <string.h>

static void check_round_trip(StorageType storage, ModelConfig config) {
    char *out_dir = new_directory();
    Fixture *model = fixture_create(storage, config), *loaded = fixture_create(storage, config);
    save_step(out_dir, model, 7);
    Checkpoint checkpoint = checkpoint_open(&alone, "latest", out_dir);
    check(checkpoint.progress.step == 7 && checkpoint.progress.samples == 224, "step %ld, samples %ld",
          (long)checkpoint.progress.step, (long)checkpoint.progress.samples);
    char *options = json_text(checkpoint.options, false);
    check(!strcmp(options, "{\"lr\":\"0.002\",\"out\":\"a \\\"quoted\\\" name\"}"), "options: %s", options);
    checkpoint_load(&checkpoint, &loaded->state);
    check_same_state(model, loaded);
    checkpoint_close(&checkpoint);
    check_listing(out_dir, "latest step_00000007");
    fixture_destroy(model);
    fixture_destroy(loaded);
    free(options);
    free(out_dir);
}

static void test_round_trip(void *argument) {
    const StorageType storage = *(const StorageType *)argument;
    check_round_trip(storage, small_shape);
    for (int i = 0; i < 3; i++) {
        const ModelConfig config = {(int64_t)(2 + random_below(90)),
                                    36,
                                    (int64_t)(1 + random_below(3)),
                                    6,
                                    3,
                                    (int64_t)(1 + random_below(70)),
                                    500000,
                                    1e-6};
        check_round_trip(storage, config);
    }
}

// Buffers larger than the chunks in which they are written and read.
static void test_large_round_trip(void *unused) {
    (void)unused;
    const ModelConfig config = {4201, 256, 1, 4, 2, 300, 10000, 1e-5};
    check_round_trip(STORAGE_FLOAT64, config);
}

static void test_equal_bytes(void *unused) {
    (void)unused;
    char *first = new_directory(), *second = new_directory();
    Fixture *model = fixture_create(STORAGE_BFLOAT16, small_shape),
            *loaded = fixture_create(STORAGE_BFLOAT16, small_shape);
    save_step(first, model, 123456789); // more than the eight digits of step_NNNNNNNN
    OpenCall call = {"latest", first, loaded};
    open_and_load(&call);
    save_step(second, loaded, 123456789);
    for (size_t i = 0; i < COUNT_OF(file_names); i++) {
        char *a = step_file(first, 123456789, file_names[i]),
             *b = step_file(second, 123456789, file_names[i]);
        size_t size_a, size_b;
        char *bytes_a = read_all(a, &size_a), *bytes_b = read_all(b, &size_b);
        check(size_a == size_b && !memcmp(bytes_a, bytes_b, size_a), "%s differs", file_names[i]);
        free(bytes_a);
        free(bytes_b);
        free(a);
        free(b);
    }
    fixture_destroy(model);
    fixture_destroy(loaded);
    free(first);
    free(second);
}

static double config_number(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    check(cJSON_IsNumber(item), "config.json: %s is not a number", key);
    return item ? item->valuedouble : 0;
}

// Reals have a point or an exponent whatever their value: transformers refuses an integer in their place.
static void test_reals(void *unused) {
    (void)unused;
    static const struct {
        double value;
        const char *text;
    } cases[] = {{1, "1.0"},        {0, "0.0"},
                 {-3, "-3.0"},      {10000, "10000.0"},
                 {1e-5, "1e-05"},   {0.1, "0.1"},
                 {5e5, "500000.0"}, {1e12, "1000000000000.0"},
                 {1e22, "1e+22"},   {1.0 / 3, "0.3333333333333333"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        cJSON *json = cJSON_CreateObject();
        json_add_real(json, "x", cases[i].value);
        char *text = json_text(json, false), *expected = format_string("{\"x\":%s}", cases[i].text);
        check(!strcmp(text, expected), "%s, not %s", text, expected);
        cJSON *again = cJSON_Parse(text);
        check(cJSON_GetNumberValue(cJSON_GetObjectItem(again, "x")) == cases[i].value, "%s is another value",
              text);
        cJSON_Delete(again);
        cJSON_Delete(json);
        free(expected);
        free(text);
    }
}

// In config.json all of them do.
static void test_reals_of_config(void *unused) {
    (void)unused;
    ModelConfig config = small_shape;
    config.norm_eps = 1;
    cJSON *json = huggingface_config(&config, STORAGE_FLOAT32, 64, -1);
    char *text = json_text(json, false);
    for (const char *const *name =
             (const char *const[]){"\"rms_norm_eps\":1.0,", "\"rope_theta\":10000.0,",
                                   "\"rope_theta\":10000.0}", "\"initializer_range\":0.02,", NULL};
         *name; name++)
        check(strstr(text, *name) != NULL, "no %s in %s", *name, text);
    free(text);
    cJSON_Delete(json);
}

static void test_hugging_face(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_BFLOAT16, small_shape);
    cJSON *options = cJSON_CreateObject();
    for (int64_t separator = -1; separator < 37; separator += 37) {
        const SaveRequest request = {out_dir, {1, 32, 0}, options, options, 640, separator, keep_all};
        save_request(model, &request, false);
        char *path = step_file(out_dir, 1, "config.json"), *text = read_all(path, NULL);
        cJSON *json = cJSON_Parse(text);
        static const struct {
            const char *key;
            double value;
        } numbers[] = {{"hidden_size", 24},        {"intermediate_size", 20},        {"num_hidden_layers", 2},
                       {"num_attention_heads", 3}, {"num_key_value_heads", 1},       {"head_dim", 8},
                       {"vocab_size", 37},         {"max_position_embeddings", 640}, {"rms_norm_eps", 1e-5},
                       {"rope_theta", 10000},      {"initializer_range", 0.02}};
        for (size_t i = 0; i < COUNT_OF(numbers); i++)
            check(config_number(json, numbers[i].key) == numbers[i].value, "config.json: %s", numbers[i].key);
        check(config_number(cJSON_GetObjectItem(json, "rope_parameters"), "rope_theta") == 10000,
              "rope_parameters");
        static const char *const words[][2] = {{"model_type", "llama"},
                                               {"hidden_act", "silu"},
                                               {"dtype", "bfloat16"},
                                               {"torch_dtype", "bfloat16"}};
        for (size_t i = 0; i < COUNT_OF(words); i++) {
            const char *word = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, words[i][0]));
            check(word && !strcmp(word, words[i][1]), "config.json: %s", words[i][0]);
        }
        for (int end = 0; end < 2; end++) {
            const cJSON *token =
                cJSON_GetObjectItemCaseSensitive(json, end ? "eos_token_id" : "bos_token_id");
            check(separator < 0 ? cJSON_IsNull(token) : cJSON_IsNumber(token) && token->valuedouble == 36,
                  "config.json: the separator");
        }
        check(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(json, "pad_token_id")),
              "config.json: pad_token_id");
        cJSON_Delete(json);
        free(text);
        free(path);
    }
    cJSON_Delete(options);
    fixture_destroy(model);
    free(out_dir);
}

static void test_other_models(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    struct {
        StorageType storage;
        ModelConfig config;
        const char *message;
    } cases[] = {
        {STORAGE_BFLOAT16, small_shape, "as F32, not as BF16"},
        {STORAGE_FLOAT64, small_shape, "as F32, not as F64"},
        {STORAGE_FLOAT32, small_shape, "with shape [20, 24]; this model needs [28, 24]"},
        {STORAGE_FLOAT32, small_shape, "with shape [37, 24]; this model needs [38, 24]"},
        {STORAGE_FLOAT32, small_shape,
         "has no tensor model.layers.2.self_attn.q_proj.weight, which this model needs"},
        {STORAGE_FLOAT32, small_shape, "holds model.layers.1."},
    };
    cases[2].config.ffn_dim = 28;
    cases[3].config.vocab_size = 38;
    cases[4].config.layers = 3;
    cases[5].config.layers = 1;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Fixture *other = fixture_create(cases[i].storage, cases[i].config);
        check_refused("latest", out_dir, other, cases[i].message);
        fixture_destroy(other);
    }
    fixture_destroy(model);
    free(out_dir);
}

// A checkpoint written before the guard existed is good: no step was skipped, and the guard has nothing to
// restore.
static void test_before_the_guard(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    char *directory = format_string("%s/step_00000001", out_dir),
         *path = step_file(out_dir, 1, "trainer.json");
    char *text = read_all(path, NULL);
    cJSON *trainer = cJSON_Parse(text);
    free(text);
    check(cJSON_HasObjectItem(trainer, "skipped") && cJSON_HasObjectItem(trainer, "guard"),
          "it has no guard");
    cJSON_DeleteItemFromObjectCaseSensitive(trainer, "skipped");
    cJSON_DeleteItemFromObjectCaseSensitive(trainer, "guard");
    text = json_text(trainer, true);
    write_all(path, text, strlen(text));
    write_manifest(directory);
    check_loads(out_dir, model);
    Checkpoint checkpoint = checkpoint_open(&alone, "latest", out_dir);
    check(checkpoint.progress.skipped == 0 && cJSON_IsObject(checkpoint.guard), "%ld steps skipped",
          (long)checkpoint.progress.skipped);
    checkpoint_close(&checkpoint);
    cJSON_Delete(trainer);
    free(text);
    free(path);
    free(directory);
    fixture_destroy(model);
    free(out_dir);
}

void test_checkpoint(void) {
    static const struct {
        StorageType storage;
        const char *name;
    } storages[] = {{STORAGE_FLOAT64, "checkpoint: round trip, float64"},
                    {STORAGE_FLOAT32, "checkpoint: round trip, float32"},
                    {STORAGE_BFLOAT16, "checkpoint: round trip, bfloat16"}};
    for (size_t i = 0; i < COUNT_OF(storages); i++)
        test_run(storages[i].name, test_round_trip, (void *)&storages[i].storage);
    test_run("checkpoint: round trip of large buffers", test_large_round_trip, NULL);
    test_run("checkpoint: equal states, equal bytes", test_equal_bytes, NULL);
    test_run("checkpoint: config.json", test_hugging_face, NULL);
    test_run("checkpoint: reals are no integers", test_reals, NULL);
    test_run("checkpoint: reals of config.json", test_reals_of_config, NULL);
    test_run("checkpoint: other models", test_other_models, NULL);
    test_run("checkpoint: one from before the guard", test_before_the_guard, NULL);
}
