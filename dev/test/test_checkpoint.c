// Checkpoints and the safetensors format: what is written comes back, what is damaged is refused, and
// whatever stops a save, a good checkpoint is left.
#include "test.h"

#include "checkpoint/checkpoint.h"
#include "base/files.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/saver.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const file_names[] = {"config.json", "model.safetensors",
                                         "optimizer-00000-of-00001.safetensors", "trainer.json",
                                         "manifest.json"};

static const Retention keep_all = {1000, 0};

static const Communicator alone = {.size = 1};

// --- a model's state, filled at random ------------------------------------------------------------------

typedef struct {
    ModelConfig config;
    ParameterTable table;
    TrainingState state;
} Model;

static const ModelConfig small_shape = {37, 24, 2, 3, 1, 20, 10000, 1e-5};

static void *random_buffer(Device *device, StorageType type, int64_t count) {
    double *values = host_allocate((size_t)count, sizeof(double), "a test");
    const size_t bytes = (size_t)count * storage_size(type);
    void *stored = host_allocate(bytes, 1, "a test"), *memory = device->allocate(device, bytes);
    random_fill(values, (size_t)count);
    storage_from_double(stored, type, values, (size_t)count);
    device->upload(device, memory, stored, bytes);
    free(values);
    free(stored);
    return memory;
}

static void refill(Model *model) {
    TrainingState *state = &model->state;
    Device *device = state->device;
    void **const buffers[] = {&state->weights, &state->master, &state->m, &state->v};
    for (size_t i = 0; i < COUNT_OF(buffers); i++) {
        const StorageType type = i == 0 ? device->ops->storage : accumulator_type(device->ops->storage);
        if (*buffers[i]) device->release(device, *buffers[i]);
        *buffers[i] = random_buffer(device, type, model->table.elements);
    }
}

static Model *model_create(StorageType storage, ModelConfig config) {
    Model *model = host_allocate(1, sizeof(Model), "a test");
    model->config = config;
    model->table = parameter_table_create(&model->config, 1);
    model->state.device = cpu_device_create(storage);
    model->state.config = &model->config;
    model->state.table = &model->table;
    model->state.communicator = &alone;
    refill(model);
    return model;
}

static void model_destroy(Model *model) {
    TrainingState *state = &model->state;
    void *const buffers[] = {state->weights, state->master, state->m, state->v};
    for (size_t i = 0; i < COUNT_OF(buffers); i++) state->device->release(state->device, buffers[i]);
    state->device->destroy(state->device);
    parameter_table_free(&model->table);
    free(model);
}

static bool same_memory(Device *device, const void *a, const void *b, size_t bytes) {
    void *first = host_allocate(bytes, 1, "a test"), *second = host_allocate(bytes, 1, "a test");
    device->download(device, first, a, bytes);
    device->download(device, second, b, bytes);
    const bool same = !memcmp(first, second, bytes);
    free(first);
    free(second);
    return same;
}

// Weights tensor by tensor (what lies between them is not part of the model), the optimizer's buffers whole.
static void check_same_state(const Model *a, const Model *b) {
    const StorageType storage = a->state.device->ops->storage;
    for (int i = 0; i < a->table.count; i++) {
        const Parameter *p = &a->table.list[i];
        const size_t offset = (size_t)p->offset * storage_size(storage);
        check(same_memory(a->state.device, (char *)a->state.weights + offset,
                          (char *)b->state.weights + offset, (size_t)p->count * storage_size(storage)),
              "%s differs", p->name);
    }
    const size_t bytes = (size_t)a->table.elements * storage_size(accumulator_type(storage));
    check(same_memory(a->state.device, a->state.master, b->state.master, bytes), "master differs");
    check(same_memory(a->state.device, a->state.m, b->state.m, bytes), "m differs");
    check(same_memory(a->state.device, a->state.v, b->state.v, bytes), "v differs");
}

// --- saving and what is on the disk ---------------------------------------------------------------------

typedef struct {
    const char *out_dir;
    const Model *model;
    int64_t step;
    Retention retention;
    bool asynchronous;
} SaveCall;

// Saves, and ends the process if that fails.
static void save_request(const Model *model, const SaveRequest *request, bool asynchronous) {
    Saver *saver = saver_create(&alone, asynchronous);
    saver_begin(saver, &model->state, request);
    if (saver_finish(saver) != SAVE_COMMITTED) fatal("%s", saver_message(saver));
    if (saver_message(saver)[0]) warning("%s", saver_message(saver));
    saver_destroy(saver);
}

static SaveRequest new_request(const char *out_dir, int64_t step, Retention retention) {
    cJSON *options = cJSON_CreateObject();
    cJSON_AddStringToObject(options, "lr", "0.002");
    cJSON_AddStringToObject(options, "out", "a \"quoted\" name");
    return (SaveRequest){out_dir, {step, 32 * step, 0}, options, options, 640, 36, retention};
}

static void delete_request(SaveRequest *request) {
    cJSON_Delete((cJSON *)request->options);
}

static void save(void *argument) {
    const SaveCall *call = (const SaveCall *)argument;
    SaveRequest request = new_request(call->out_dir, call->step, call->retention);
    save_request(call->model, &request, call->asynchronous);
    delete_request(&request);
}

static void save_step(const char *out_dir, const Model *model, int64_t step) {
    SaveCall call = {out_dir, model, step, keep_all, false};
    save(&call);
}

// A fresh directory whose name outlives the next one.
static char *new_directory(void) {
    return format_string("%s", test_directory());
}

static char *step_file(const char *out_dir, int64_t step, const char *name) {
    return format_string("%s/step_%08ld/%s", out_dir, (long)step, name);
}

static char *read_all(const char *path, size_t *size) {
    char *text = file_read_text(path, (size_t)1 << 30, size);
    if (!text) fatal("cannot read %s", path);
    return text;
}

static void write_all(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) fatal("cannot write %s", path);
}

static bool exists(const char *out_dir, const char *name) {
    char *path = format_string("%s/%s", out_dir, name);
    struct stat status;
    const bool found = stat(path, &status) == 0;
    free(path);
    return found;
}

// The names in a directory, sorted, as "a b c".
static char *listing(const char *directory) {
    struct dirent **entries;
    const int count = scandir(directory, &entries, NULL, alphasort);
    char *text = format_string("%s", "");
    for (int i = 0; i < count; i++) {
        if (entries[i]->d_name[0] != '.') {
            char *longer = format_string("%s%s%s", text, *text ? " " : "", entries[i]->d_name);
            free(text);
            text = longer;
        }
        free(entries[i]);
    }
    free(entries);
    return text;
}

static void check_listing(const char *directory, const char *expected) {
    char *found = listing(directory);
    check(!strcmp(found, expected), "%s holds %s; it should hold %s", directory, found, expected);
    free(found);
}

// --- opening and loading --------------------------------------------------------------------------------

typedef struct {
    const char *resume, *out_dir;
    const Model *model; // to load into; NULL: only open
} OpenCall;

static void open_and_load(void *argument) {
    const OpenCall *call = (const OpenCall *)argument;
    Checkpoint checkpoint = checkpoint_open(&alone, call->resume, call->out_dir);
    if (call->model) checkpoint_load(&checkpoint, &call->model->state);
    checkpoint_close(&checkpoint);
}

static void check_refused(const char *resume, const char *out_dir, const Model *model, const char *message) {
    OpenCall call = {resume, out_dir, model};
    check_dies(open_and_load, &call, message);
}

// Opens with "latest"; the step it is of, and what was said on stderr.
static int64_t open_latest(const char *out_dir, char warnings[4096]) {
    FILE *captured = tmpfile();
    fflush(stderr);
    const int original = dup(STDERR_FILENO);
    dup2(fileno(captured), STDERR_FILENO);
    Checkpoint checkpoint = checkpoint_open(&alone, "latest", out_dir);
    dup2(original, STDERR_FILENO);
    close(original);
    rewind(captured);
    warnings[fread(warnings, 1, 4095, captured)] = 0;
    fclose(captured);
    const int64_t step = checkpoint.progress.step;
    checkpoint_close(&checkpoint);
    return step;
}

static void check_latest(const char *out_dir, int64_t step, const char *warning) {
    char warnings[4096];
    const int64_t found = open_latest(out_dir, warnings);
    check(found == step, "latest is step %ld, it should be %ld", (long)found, (long)step);
    check(warning ? strstr(warnings, warning) != NULL : !warnings[0], "the warnings were: %s (expected: %s)",
          warnings, warning ? warning : "none");
}

// --- round trip -----------------------------------------------------------------------------------------

static void check_round_trip(StorageType storage, ModelConfig config) {
    char *out_dir = new_directory();
    Model *model = model_create(storage, config), *loaded = model_create(storage, config);
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
    model_destroy(model);
    model_destroy(loaded);
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

// Buffers larger than the pieces they travel in.
static void test_large_round_trip(void *unused) {
    (void)unused;
    const ModelConfig config = {4201, 256, 1, 4, 2, 300, 10000, 1e-5};
    check_round_trip(STORAGE_FLOAT64, config);
}

static void test_equal_bytes(void *unused) {
    (void)unused;
    char *first = new_directory(), *second = new_directory();
    Model *model = model_create(STORAGE_BFLOAT16, small_shape),
          *loaded = model_create(STORAGE_BFLOAT16, small_shape);
    save_step(first, model, 123456789); // a step of more digits than usual
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
    model_destroy(model);
    model_destroy(loaded);
    free(first);
    free(second);
}

static double config_number(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    check(cJSON_IsNumber(item), "config.json: %s is not a number", key);
    return item ? item->valuedouble : 0;
}

static void test_hugging_face(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_BFLOAT16, small_shape);
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
    model_destroy(model);
    free(out_dir);
}

// --- damage ---------------------------------------------------------------------------------------------

// With an explicit directory it is fatal; with latest the one before is taken, and the damaged one named.
static void check_damage_found(const char *out_dir, const char *file_name) {
    char *newest = format_string("%s/step_00000002", out_dir);
    char *named = format_string("the checkpoint %s is damaged: ", newest);
    check_refused(newest, NULL, NULL, "not a good checkpoint: ");
    if (strcmp(file_name, "manifest.json")) check_refused(newest, NULL, NULL, file_name);
    check_latest(out_dir, 1, named);
    free(named);
    free(newest);
}

static void test_damage(void *argument) {
    const char *file_name = (const char *)argument;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_BFLOAT16, small_shape);
    save_step(out_dir, model, 1);
    refill(model);
    save_step(out_dir, model, 2);
    char *path = step_file(out_dir, 2, file_name);
    size_t size;
    char *bytes = read_all(path, &size);
    for (int i = 0; i < 8; i++) { // one bit
        const size_t place = i == 0 ? 0 : i == 1 ? size - 1 : random_below(size);
        const char bit = (char)(1 << random_below(8));
        bytes[place] ^= bit;
        write_all(path, bytes, size);
        check_damage_found(out_dir, file_name);
        bytes[place] ^= bit;
    }
    for (int i = 0; i < 4; i++) { // cut off
        write_all(path, bytes, i == 0 ? 0 : i == 1 ? size - 1 : random_below(size));
        check_damage_found(out_dir, file_name);
    }
    write_all(path, bytes, size + 1); // the NUL after the text
    check_damage_found(out_dir, file_name);
    check(unlink(path) == 0, "cannot remove %s", path);
    check_damage_found(out_dir, file_name);
    write_all(path, bytes, size);
    check_latest(out_dir, 2, NULL);
    free(bytes);
    free(path);
    model_destroy(model);
    free(out_dir);
}

static void check_one_damage(const char *out_dir, const char *path, const char *bytes, size_t size) {
    write_all(path, bytes, size);
    check_latest(out_dir, 1, "the checkpoint ");
}

static size_t header_bytes(const char *file_name, const char *bytes, size_t size) {
    uint64_t length;
    memcpy(&length, bytes, sizeof(length));
    return strstr(file_name, ".safetensors") ? (size_t)length + sizeof(length) : size;
}

// Every byte that says what the others are, in every way for the manifest, for which no hash vouches; some of
// the others; and every file cut off at many places. The good one before is taken each time.
static void test_every_byte(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    save_step(out_dir, model, 2);
    for (size_t i = 0; i < COUNT_OF(file_names); i++) {
        char *path = step_file(out_dir, 2, file_names[i]);
        size_t size;
        char *bytes = read_all(path, &size);
        const size_t header = header_bytes(file_names[i], bytes, size);
        const int ways = strcmp(file_names[i], "manifest.json") ? 1 : 8;
        for (size_t place = 0; place < size; place += place < header ? 1 : 1 + random_below(2000))
            for (int way = 0; way < ways; way++) {
                const char bit = (char)(1 << (ways == 8 ? (uint64_t)way : random_below(8)));
                bytes[place] ^= bit;
                check_one_damage(out_dir, path, bytes, size);
                bytes[place] ^= bit;
            }
        for (size_t length = 0; length < size; length += 1 + random_below(1 + size / 50))
            check_one_damage(out_dir, path, bytes, length);
        write_all(path, bytes, size);
        free(bytes);
        free(path);
    }
    check_latest(out_dir, 2, NULL);
    model_destroy(model);
    free(out_dir);
}

static void test_nothing_to_resume(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    char *missing = format_string("%s/none", out_dir);
    check_refused("latest", NULL, NULL, "--resume latest looks for checkpoints under --out");
    check_refused("latest", out_dir, NULL, "there is no checkpoint (step_NNNNNNNN) in --out");
    check_refused("latest", missing, NULL, "there is no checkpoint (step_NNNNNNNN) in --out");
    check_refused(missing, out_dir, NULL, "manifest.json cannot be read: No such file");
    check_refused(out_dir, out_dir, NULL, "manifest.json cannot be read: No such file");
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 5);
    char *path = step_file(out_dir, 5, "trainer.json");
    check(truncate(path, 10) == 0, "cannot truncate %s", path);
    check_refused("latest", out_dir, NULL, "there is no good checkpoint (step_NNNNNNNN) in --out");
    model_destroy(model);
    free(path);
    free(missing);
    free(out_dir);
}

// Another version's files, and a manifest that does not cover what it should.
static void test_other_formats(void *unused) {
    (void)unused;
    static const struct {
        const char *file, *from, *to, *message;
    } cases[] = {
        {"manifest.json", "\"format_version\":\t1", "\"format_version\":\t2",
         "has format version 2; this program"},
        {"manifest.json", "\"format_version\"", "\"format\"", "manifest.json has no format_version"},
        {"manifest.json", "\"files\"", "\"fails\"", "manifest.json has no list of files"},
        {"manifest.json", "\"bytes\"", "\"bites\"", "has an entry without name, bytes and xxh3_128"},
        {"manifest.json", "\"config.json\"", "\"../config.json\"", "which is not in this directory"},
        {"manifest.json", "\t", " ", "manifest.json is not as it was written"},
    };
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    char *directory = format_string("%s/step_00000001", out_dir);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *path = step_file(out_dir, 1, cases[i].file);
        size_t size;
        char *text = read_all(path, &size), *place = strstr(text, cases[i].from);
        check(place != NULL, "%s has no %s", cases[i].file, cases[i].from);
        if (place) {
            char *changed = format_string("%.*s%s%s", (int)(place - text), text, cases[i].to,
                                          place + strlen(cases[i].from));
            write_all(path, changed, strlen(changed));
            check_refused(directory, NULL, NULL, cases[i].message);
            write_all(path, text, size);
            free(changed);
        }
        free(text);
        free(path);
    }
    model_destroy(model);
    free(directory);
    free(out_dir);
}

// --- latest, retention, replacement ---------------------------------------------------------------------

static void test_latest(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *latest = format_string("%s/latest", out_dir);
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    for (int64_t step = 10; step <= 30; step += 10) save_step(out_dir, model, step);
    check_latest(out_dir, 30, NULL);
    write_all(latest, "step_00000020\n", 14); // the user's choice
    check_latest(out_dir, 20, NULL);
    check(unlink(latest) == 0, "cannot remove %s", latest);
    check_latest(out_dir, 30, NULL);
    write_all(latest, "nonsense", 8);
    check_latest(out_dir, 30, "latest does not name a checkpoint");
    write_all(latest, "step_00000020.tmp", 17);
    check_latest(out_dir, 30, "latest does not name a checkpoint");
    write_all(latest, "step_00000025", 13);
    check_latest(out_dir, 20, "latest names step_00000025, which does not exist");
    // The one before the damaged one comes before a newer one, which comes before none.
    write_all(latest, "step_00000020\n", 14);
    char *path = step_file(out_dir, 20, "config.json");
    check(truncate(path, 3) == 0, "cannot truncate %s", path);
    check_latest(out_dir, 10, "step_00000020 is damaged: config.json has 3 bytes");
    char *first = step_file(out_dir, 10, "trainer.json");
    check(truncate(first, 3) == 0, "cannot truncate %s", first);
    check_latest(out_dir, 30, "step_00000010 is damaged: trainer.json has 3 bytes");
    model_destroy(model);
    free(first);
    free(path);
    free(latest);
    free(out_dir);
}

static void test_retention(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    SaveCall call = {out_dir, model, 0, {2, 30}, false};
    for (call.step = 10; call.step <= 80; call.step += 10) save(&call);
    check_listing(out_dir, "latest step_00000030 step_00000060 step_00000070 step_00000080");
    // A run that went on from an earlier checkpoint keeps what it writes, and what it has not reached again.
    call.step = 65;
    call.retention.keep = 1;
    save(&call);
    check_listing(out_dir, "latest step_00000030 step_00000060 step_00000065 step_00000070 step_00000080");
    check_latest(out_dir, 65, NULL);
    call.step = 90;
    call.retention.keep_every = 0;
    save(&call);
    check_listing(out_dir, "latest step_00000090");
    model_destroy(model);
    free(out_dir);
}

static void make_debris(const char *out_dir, const char *name) {
    char *directory = format_string("%s/%s", out_dir, name),
         *file = format_string("%s/model.safetensors", directory);
    check(directory_make(directory), "cannot make %s", directory);
    write_all(file, "half a file", 11);
    free(file);
    free(directory);
}

static void test_debris(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    make_debris(out_dir, "step_00000002.tmp");
    make_debris(out_dir, "step_00000003.tmp");
    make_debris(out_dir, "step_00000001.old"); // its successor is in place
    make_debris(out_dir, "step_other");
    make_debris(out_dir, "step_4.tmp");
    check_latest(out_dir, 1, NULL);
    save_step(out_dir, model, 2);
    check_listing(out_dir, "latest step_00000001 step_00000002 step_4.tmp step_other");
    model_destroy(model);
    free(out_dir);
}

static void move_step(const char *out_dir, const char *from, const char *to) {
    char *source = format_string("%s/%s", out_dir, from), *target = format_string("%s/%s", out_dir, to);
    check(rename(source, target) == 0, "cannot rename %s", source);
    free(source);
    free(target);
}

static void check_loads(const char *out_dir, const Model *expected) {
    Model *loaded = model_create(expected->state.device->ops->storage, expected->config);
    OpenCall call = {"latest", out_dir, loaded};
    open_and_load(&call);
    check_same_state(expected, loaded);
    model_destroy(loaded);
}

static void test_replacement(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    refill(model);
    save_step(out_dir, model, 1);
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);
    // Killed between the two renames of a replacement.
    move_step(out_dir, "step_00000001", "step_00000001.old");
    make_debris(out_dir, "step_00000001.tmp");
    check_latest(out_dir, 1, "latest names step_00000001, which does not exist");
    save_step(out_dir, model, 2);
    check_listing(out_dir, "latest step_00000001 step_00000002");
    char *first = format_string("%s/step_00000001", out_dir);
    OpenCall call = {first, NULL, NULL};
    open_and_load(&call);
    model_destroy(model);
    free(first);
    free(out_dir);
}

// --- saves that do not come to their end ----------------------------------------------------------------

static void save_to_full_disk(void *argument) {
    signal(SIGXFSZ, SIG_IGN); // writing beyond the limit is then an error like any other
    const struct rlimit limit = {5000, 5000};
    setrlimit(RLIMIT_FSIZE, &limit);
    save(argument);
}

static void test_failing_saves(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *file = format_string("%s/file", out_dir);
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    write_all(file, "x", 1);
    SaveCall into_file = {file, model, 1, keep_all, false};
    check_dies(save, &into_file, "file: Not a directory");
    SaveCall below_file = {format_string("%s/below", file), model, 1, keep_all, false};
    check_dies(save, &below_file, "file/below: Not a directory");
    check(unlink(file) == 0, "cannot remove %s", file);
    SaveCall nameless = {"", model, 1, keep_all, false};
    check_dies(save, &nameless, "saving a checkpoint: cannot make ");

    save_step(out_dir, model, 1);
    SaveCall full = {out_dir, model, 2, {1, 0}, false};
    check_dies(save_to_full_disk, &full, "step_00000002.tmp/model.safetensors: File too large");
    check_listing(out_dir, "latest step_00000001");
    full.step = 1; // replacing one must not cost it
    check_dies(save_to_full_disk, &full, "step_00000001.tmp/model.safetensors: File too large");
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);

    char *latest = format_string("%s/latest", out_dir);
    check(unlink(latest) == 0, "cannot remove %s", latest);
    make_debris(out_dir, "latest");
    check_dies(save, &full, "latest: Is a directory");
    free((void *)below_file.out_dir);
    model_destroy(model);
    free(latest);
    free(file);
    free(out_dir);
}

// Killed at some moment again and again, while it saves new steps and replaces old ones.
static void test_killed_saves(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *nested = format_string("%s/a/b", out_dir);
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    save_step(nested, model, 1);
    for (int i = 0; i < 25; i++) {
        char warnings[4096];
        const int64_t newest = open_latest(nested, warnings);
        fflush(NULL);
        const pid_t child = fork();
        if (child == 0) {
            SaveCall call = {nested, model, newest, {1 + i % 2, 0}, i % 5 > 1};
            for (;; call.step += i % 3 == 0 ? 0 : 1) save(&call);
        }
        usleep((useconds_t)random_below(30000));
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        check(WIFSIGNALED(status), "the saving process ended by itself");
        const int64_t found = open_latest(nested, warnings);
        check(found >= newest, "step %ld was there, only %ld is", (long)newest, (long)found);
        check(!strstr(warnings, "damaged"), "left behind: %s", warnings);
        check_loads(nested, model);
    }
    save_step(nested, model, 1000000);
    check(exists(nested, "step_01000000"), "cannot save after all that");
    model_destroy(model);
    free(nested);
    free(out_dir);
}

// --- beside training ------------------------------------------------------------------------------------

static void begin(Saver *saver, const char *out_dir, const Model *model, int64_t step) {
    SaveRequest request = new_request(out_dir, step, (Retention){2, 0});
    saver_begin(saver, &model->state, &request);
    delete_request(&request);
}

// What is saved is the state at the beginning, whatever training does to it then; each save is reported once.
static void test_beside_training(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *between = new_directory();
    Model *model = model_create(STORAGE_BFLOAT16, small_shape),
          *before = model_create(STORAGE_BFLOAT16, small_shape);
    Saver *saver = saver_create(&alone, true);
    check(saver_poll(saver) == SAVE_NONE && saver_finish(saver) == SAVE_NONE, "reports a save before any");
    for (int64_t step = 1; step <= 6; step++) {
        save_step(between, model, step);
        OpenCall call = {"latest", between, before};
        open_and_load(&call);
        begin(saver, out_dir, model, step);
        refill(model);
        SaveOutcome outcome = SAVE_NONE;
        for (int polls = 0; step % 2 == 0 && outcome == SAVE_NONE && polls < 60000; polls++) {
            outcome = saver_poll(saver);
            usleep(1000);
        }
        if (step % 2 == 1) outcome = saver_finish(saver);
        check(outcome == SAVE_COMMITTED && !saver_message(saver)[0], "outcome %d: %s", outcome,
              saver_message(saver));
        check(saver_poll(saver) == SAVE_NONE && saver_finish(saver) == SAVE_NONE, "reports a save twice");
        check_loads(out_dir, before);
    }
    check_listing(out_dir, "latest step_00000005 step_00000006");
    saver_destroy(saver);
    model_destroy(model);
    model_destroy(before);
    free(between);
    free(out_dir);
}

// Beside training or not, a failure is a value, and the next save goes well.
static void test_failure_is_no_end(void *argument) {
    const bool asynchronous = argument != NULL;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    Saver *saver = saver_create(&alone, asynchronous);
    begin(saver, out_dir, model, 1);
    check(saver_finish(saver) == SAVE_COMMITTED, "%s", saver_message(saver));
    void (*const handler)(int) = signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit, full = {5000, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &limit);
    full.rlim_max = limit.rlim_max;
    for (int64_t step = 1; step <= 2; step++) {
        setrlimit(RLIMIT_FSIZE, &full);
        begin(saver, out_dir, model, step);
        const SaveOutcome outcome = saver_finish(saver);
        setrlimit(RLIMIT_FSIZE, &limit);
        check(outcome == SAVE_FAILED, "outcome %d", outcome);
        check(strstr(saver_message(saver), "saving a checkpoint: cannot write ") &&
                  strstr(saver_message(saver), "model.safetensors: File too large"),
              "says %s", saver_message(saver));
        check_listing(out_dir, "latest step_00000001");
        check_loads(out_dir, model);
    }
    begin(saver, out_dir, model, 2);
    check(saver_finish(saver) == SAVE_COMMITTED && !saver_message(saver)[0], "%s", saver_message(saver));
    check_listing(out_dir, "latest step_00000001 step_00000002");
    signal(SIGXFSZ, handler);
    saver_destroy(saver);
    model_destroy(model);
    free(out_dir);
}

static void begin_and_die(void *argument) {
    const SaveCall *call = (const SaveCall *)argument;
    Saver *saver = saver_create(&alone, true);
    begin(saver, call->out_dir, call->model, call->step);
    fatal("the end");
}

// A process that ends with an error finishes the checkpoint that it has begun.
static void test_end_beside_training(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
    SaveCall call = {out_dir, model, 1, keep_all, true};
    check_dies(begin_and_die, &call, "the end");
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);
    model_destroy(model);
    free(out_dir);
}

static void begin_without_memory(void *argument) {
    const SaveCall *call = (const SaveCall *)argument;
    FILE *file = fopen("/proc/self/statm", "r");
    long pages;
    if (!file || fscanf(file, "%ld", &pages) != 1) fatal("no statm");
    fclose(file);
    const rlim_t bytes = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)48 << 20);
    const struct rlimit limit = {bytes, bytes};
    setrlimit(RLIMIT_AS, &limit);
    Saver *saver = saver_create(&alone, true);
    begin(saver, call->out_dir, call->model, call->step);
    if (saver_finish(saver) != SAVE_COMMITTED) fatal("%s", saver_message(saver));
    fatal("saved");
}

// Without memory for the copy of the state, training waits until it is written.
static void test_no_memory_beside_training(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    const ModelConfig config = {4201, 256, 1, 4, 2, 300, 10000, 1e-5}; // 78 MB in float64
    Model *model = model_create(STORAGE_FLOAT64, config);
    SaveCall call = {out_dir, model, 1, keep_all, true};
    check_dies(begin_without_memory, &call, "out of host memory: the copy of what a checkpoint saves needs ");
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);
    model_destroy(model);
    free(out_dir);
}

// --- loading into another model -------------------------------------------------------------------------

static void test_other_models(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
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
        Model *other = model_create(cases[i].storage, cases[i].config);
        check_refused("latest", out_dir, other, cases[i].message);
        model_destroy(other);
    }
    model_destroy(model);
    free(out_dir);
}

// --- optimizer state in several files -------------------------------------------------------------------

// The manifest of what is in the directory.
static void write_manifest(const char *directory) {
    char *names = listing(directory);
    cJSON *manifest = cJSON_CreateObject();
    cJSON_AddNumberToObject(manifest, "format_version", 1);
    cJSON *files = cJSON_AddArrayToObject(manifest, "files");
    for (char *name = strtok(names, " "); name; name = strtok(NULL, " ")) {
        if (!strcmp(name, "manifest.json")) continue;
        char *path = format_string("%s/%s", directory, name), hash[FILE_HASH_SIZE];
        struct stat status;
        check(file_hash(path, hash) && stat(path, &status) == 0, "cannot hash %s", path);
        cJSON *entry = cJSON_CreateObject();
        cJSON_AddStringToObject(entry, "name", name);
        cJSON_AddNumberToObject(entry, "bytes", (double)status.st_size);
        cJSON_AddStringToObject(entry, "xxh3_128", hash);
        cJSON_AddItemToArray(files, entry);
        free(path);
    }
    char *text = json_text(manifest, true), *path = format_string("%s/manifest.json", directory);
    write_all(path, text, strlen(text));
    cJSON_Delete(manifest);
    free(path);
    free(text);
    free(names);
}

// What runs wrote that knew no guard is as good: no step was without an update, and there is nothing to
// restore.
static void test_before_the_guard(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape);
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
    model_destroy(model);
    free(out_dir);
}

// One file of the optimizer's state, with metadata as given; the elements are those of `count` ranges.
static void write_optimizer_ranges(const char *directory, int rank, int world, const Model *model,
                                   const ElementRange *ranges, int range_count, const char *const *metadata) {
    const TrainingState *state = &model->state;
    int64_t count = 0;
    for (int i = 0; i < range_count; i++) count += ranges[i].count;
    const void *const buffers[] = {state->master, state->m, state->v};
    const char *const names[] = {"master", "m", "v"};
    Tensor tensors[3] = {0};
    for (int i = 0; i < 3; i++) {
        strcpy(tensors[i].name, names[i]);
        tensors[i].type = STORAGE_FLOAT32;
        tensors[i].dims = 1;
        tensors[i].shape[0] = tensors[i].count = count;
    }
    size_t size;
    char *header = safetensors_header(tensors, count > 0 ? 3 : 0, metadata, &size);
    char *path = format_string("%s/optimizer-%05d-of-%05d.safetensors", directory, rank, world);
    FILE *file = fopen(path, "wb");
    fwrite(header, 1, size, file);
    float *part = host_allocate((size_t)count, sizeof(float), "a test");
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < range_count; j++) {
            const size_t bytes = (size_t)ranges[j].count * sizeof(float);
            state->device->download(state->device, part, (const float *)buffers[i] + ranges[j].first, bytes);
            fwrite(part, 1, bytes, file);
        }
    check(fclose(file) == 0, "cannot write %s", path);
    free(part);
    free(path);
    free(header);
}

// One file of elements [first, first + count).
static void write_optimizer_part(const char *directory, int rank, int world, const Model *model,
                                 int64_t first, int64_t count) {
    const ElementRange range = {first, count};
    char first_text[32], count_text[32], total_text[32];
    sprintf(first_text, "%ld", (long)first);
    sprintf(count_text, "%ld", (long)count);
    sprintf(total_text, "%ld", (long)model->table.elements);
    const char *const metadata[] = {"first", first_text, "count", count_text, "total", total_text, NULL};
    write_optimizer_ranges(directory, rank, world, model, &range, 1, metadata);
}

static void test_split_optimizer(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_BFLOAT16, small_shape);
    save_step(out_dir, model, 1);
    char *directory = format_string("%s/step_00000001", out_dir);
    char *whole = step_file(out_dir, 1, file_names[2]);
    const int64_t total = model->table.elements;
    write_optimizer_part(directory, 2, 3, model, 0, 777); // in any order
    write_optimizer_part(directory, 0, 3, model, 777, 223);
    write_optimizer_part(directory, 1, 3, model, 1000, total - 1000);
    write_manifest(directory);
    Model *loaded = model_create(STORAGE_BFLOAT16, small_shape);
    check_refused(directory, NULL, loaded, "manifest.json lists optimizer files of ");
    check(unlink(whole) == 0, "cannot remove %s", whole);
    write_manifest(directory);
    check_loads(out_dir, model);

    static const struct {
        int64_t first, count;
        const char *message;
    } cases[] = {{777, 224, "do not fit together: one begins at element 1000, not 1001"},
                 {777, 222, "do not fit together: one begins at element 1000, not 999"},
                 {0, 777, "do not fit together: one begins at element 0, not 777"},
                 {778, 222, "do not fit together: one begins at element 778, not 777"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        write_optimizer_part(directory, 0, 3, model, cases[i].first, cases[i].count);
        write_manifest(directory);
        check_refused(directory, NULL, loaded, cases[i].message);
    }
    write_optimizer_part(directory, 0, 3, model, 777, 223);
    write_optimizer_part(directory, 1, 3, model, 1000, total - 1001);
    write_manifest(directory);
    check_refused(directory, NULL, loaded, "end at element ");
    char *part = step_file(out_dir, 1, "optimizer-00001-of-00003.safetensors");
    check(unlink(part) == 0, "cannot remove %s", part);
    write_manifest(directory);
    check_refused(directory, NULL, loaded, "manifest.json lists no optimizer-00001-of-00003.safetensors");
    model_destroy(model);
    model_destroy(loaded);
    free(part);
    free(whole);
    free(directory);
    free(out_dir);
}

// Files whose elements are several ranges each, and metadata that does not say so rightly.
static void test_scattered_optimizer(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Model *model = model_create(STORAGE_FLOAT32, small_shape),
          *loaded = model_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    char *directory = format_string("%s/step_00000001", out_dir),
         *whole = step_file(out_dir, 1, file_names[2]);
    check(unlink(whole) == 0, "cannot remove %s", whole);
    const long total = (long)model->table.elements, rest = total - 150;
    char *rest_text = format_string("100,%ld", rest), *total_text = format_string("%ld", total);
    const ElementRange first[] = {{0, 100}, {150, rest}}, second[] = {{120, 30}, {100, 20}};
    const char *const first_good[] = {"first", "0,150", "count", rest_text, "total", total_text, NULL};
    const char *const second_good[] = {"first", "120,100", "count", "30,20", "total", total_text, NULL};
    const char *const empty[] = {"first", "", "count", "", "total", total_text, NULL};
    write_optimizer_ranges(directory, 0, 3, model, first, 2, first_good);
    write_optimizer_ranges(directory, 1, 3, model, second, 2, second_good);
    write_optimizer_ranges(directory, 2, 3, model, second, 0, empty);
    write_manifest(directory);
    check_loads(out_dir, model);

    static const struct {
        const char *first, *count, *message;
    } cases[] = {{"120,100", "30", "has more of \"first\" or of \"count\""},
                 {"120", "30,20", "has more of \"first\" or of \"count\""},
                 {"120,100,", "30,20", "is not of whole numbers"},
                 {"120,100", "30,20x", "is not of whole numbers"},
                 {"120,,100", "30,10,10", "is not of whole numbers"},
                 {"-120,100", "30,20", "is not of whole numbers"},
                 {" 120,100", "30,20", "is not of whole numbers"},
                 {"120,99999999999999999999", "30,20", "is not of whole numbers"},
                 {"120,9223372036854775807", "30,20", "beyond its total of"},
                 {"120,100", "30,9223372036854775807", "beyond its total of"},
                 {"121,100", "30,20", "do not fit together: one begins at element 121, not 120"},
                 {"119,100", "30,20", "do not fit together: one begins at element 119, not 120"},
                 {"120,100", "20,30", "do not fit together: one begins at element 120, not 130"},
                 {"120,100", "30,21", "with shape [50]; this model needs [51]"},
                 {"120,100", "30,19", "with shape [50]; this model needs [49]"},
                 {"120,100", NULL, "has no \"count\""},
                 {"", "", "has 3 tensors, not 0"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *const metadata[] = {
            "total",        total_text, "first", cases[i].first, cases[i].count ? "count" : NULL,
            cases[i].count, NULL};
        write_optimizer_ranges(directory, 1, 3, model, second, 2, metadata);
        write_manifest(directory);
        check_refused(directory, NULL, loaded, cases[i].message);
    }
    static const char *const totals[][2] = {{"", "has no whole number \"total\""},
                                            {"x", "has no whole number \"total\""},
                                            {"12,", "has no whole number \"total\""},
                                            {"7", "is of 7 elements, this model has"}};
    for (size_t i = 0; i < COUNT_OF(totals); i++) {
        const char *const metadata[] = {"first", "120,100", "count", "30,20", "total", totals[i][0], NULL};
        write_optimizer_ranges(directory, 1, 3, model, second, 2, metadata);
        write_manifest(directory);
        check_refused(directory, NULL, loaded, totals[i][1]);
    }
    model_destroy(model);
    model_destroy(loaded);
    free(rest_text);
    free(total_text);
    free(whole);
    free(directory);
    free(out_dir);
}

// --- safetensors ----------------------------------------------------------------------------------------

#define TENSOR(name, type, shape, offsets)                                                                   \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A                    TENSOR("a", "F32", "[2,3]", "[0,24]")
#define B                    TENSOR("b", "BF16", "[4]", "[24,32]")
#define C_OF(shape, offsets) "{" A "," TENSOR("c", "F32", shape, offsets) "}"

static void write_safetensors(const char *path, const char *header, uint64_t length, size_t data_bytes) {
    FILE *file = fopen(path, "wb");
    for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 0xff), file);
    fputs(header, file);
    for (size_t i = 0; i < data_bytes; i++) fputc((int)random_below(256), file);
    fclose(file);
}

static void test_hostile_safetensors(void *unused) {
    (void)unused;
    static const struct {
        const char *header;
        int64_t length; // that the file claims; 0: the true one
        size_t data_bytes;
        const char *reason;
    } cases[] = {
        {"{" A "," B "}", (int64_t)1 << 62, 32,
         "header's length of 4611686018427387904 bytes is not from 2 to"},
        {"{" A "," B "}", -1, 32, "header's length of 18446744073709551615 bytes is not from 2 to"},
        {"{" A "," B "}", 100000001, 32, "header's length of 100000001 bytes is not from 2 to"},
        {"{" A "," B "}", 1, 32, "header's length of 1 bytes is not from 2 to"},
        {"{" A "," B "}", 5000, 32, "header's length of 5000 bytes is more than the file"},
        {"{" A "," B "}", 50, 32, "is not a JSON object"},
        {"{" A "," B, 0, 32, "is not a JSON object"},
        {"[" A "]", 0, 32, "is not a JSON object"},
        {" {" A "," B "}", 0, 32, "is not a JSON object"},
        {"{" A "," B "} x", 0, 32, "is not a JSON object"},
        {"{" A "," B "}", 0, 33, "the last 1 bytes of data belong to no tensor"},
        {"{" A "," B "}", 0, 31, "b: its data ends at 32, but the file has 31 bytes of data"},
        {"{" A "," A "}", 0, 24, "a: the name stands there twice"},
        {"{" A "," TENSOR("b", "BF16", "[4]", "[26,34]") "}", 0, 34,
         "b: the 2 bytes of data before it belong to no"},
        {"{" A "," TENSOR("b", "BF16", "[4]", "[22,30]") "}", 0, 30, "b: its data overlaps that of a"},
        {"{" TENSOR("b", "BF16", "[4]", "[8,16]") "}", 0, 16,
         "b: the 8 bytes of data before it belong to no"},
        {C_OF("[2]", "[32,24]"), 0, 32, "c: its data begins at 32 and ends before, at 24"},
        {C_OF("[3]", "[24,32]"), 0, 32, "c: it has 8 bytes of data, but its type and shape make 12"},
        {C_OF("[2]", "[24.5,32]"), 0, 32, "c: its data_offsets are not two whole numbers"},
        {C_OF("[2]", "[-8,0]"), 0, 32, "c: its data_offsets are not two whole numbers"},
        {C_OF("[2]", "[24,32,40]"), 0, 32, "c: its data_offsets are not two whole numbers"},
        {C_OF("[2]", "[24,1e300]"), 0, 32, "c: its data_offsets are not two whole numbers"},
        {C_OF("[2]", "\"24\""), 0, 32, "c: its data_offsets are not two whole numbers"},
        {C_OF("[]", "[24,28]"), 0, 28, "c: it has 0 dimensions, not 1 or 2"},
        {C_OF("[1,1,2]", "[24,32]"), 0, 32, "c: it has 3 dimensions, not 1 or 2"},
        {C_OF("2", "[24,32]"), 0, 32, "c: its shape is not a list"},
        {C_OF("[0]", "[24,24]"), 0, 24, "c: its shape is not of whole numbers above zero"},
        {C_OF("[-2]", "[24,32]"), 0, 32, "c: its shape is not of whole numbers above zero"},
        {C_OF("[\"2\"]", "[24,32]"), 0, 32, "c: its shape is not of whole numbers above zero"},
        {C_OF("[4294967296,4294967296]", "[24,24]"), 0, 24, "c: its shape overflows 64 bits"},
        {C_OF("[2147483648,4294967297]", "[24,32]"), 0, 32, "c: its shape overflows 64 bits"},
        {C_OF("[2147483648,4294967295]", "[24,32]"), 0, 32, "c: its size overflows 64 bits"},
        {"{" A "," TENSOR("d", "I64", "[1]", "[24,32]") "}", 0, 32,
         "d: its dtype \"I64\" is none of F64, F32, BF16"},
        {"{" A "," TENSOR("d", "f32", "[2]", "[24,32]") "}", 0, 32,
         "d: its dtype \"f32\" is none of F64, F32, BF16"},
        {"{\"d\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,8]}}", 0, 8, "d: its dtype is not a string"},
        {"{\"d\":{\"dtype\":\"F64\",\"shape\":[1]}}", 0, 8,
         "d: it does not have dtype, shape and data_offsets"},
        {"{\"d\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8],\"dtype\":\"F32\"}}", 0, 8,
         "d: it does not have dtype, shape and data_offsets"},
        {"{\"d\":[]}", 0, 0, "d: it does not have dtype, shape and data_offsets"},
        {"{\"d\":null}", 0, 0, "d: it does not have dtype, shape and data_offsets"},
        {"{\"__metadata__\":{\"a\":1}," A "}", 0, 24, "__metadata__ is not an object of strings"},
        {"{\"__metadata__\":[\"a\"]," A "}", 0, 24, "__metadata__ is not an object of strings"},
        {"{\"__metadata__\":{},\"__metadata__\":{}," A "}", 0, 24, "__metadata__ stands there twice"},
        {"{" TENSOR("a234567890b234567890c234567890d234567890e234567890f234567890g234567890h234567890i2345678"
                    "90j23456",
                    "F32", "[6]", "[0,24]") "}",
         0, 24, "has more than 95 bytes"},
    };
    char *path = format_string("%s/t.safetensors", test_directory());
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        write_safetensors(path, cases[i].header,
                          cases[i].length ? (uint64_t)cases[i].length : strlen(cases[i].header),
                          cases[i].data_bytes);
        SafetensorsFile file;
        char reason[1024] = "";
        const bool opened = safetensors_open(&file, path, reason, sizeof(reason));
        check(!opened && strstr(reason, cases[i].reason), "%s: says \"%s\", not \"%s\"", cases[i].header,
              reason, cases[i].reason);
        if (opened) safetensors_close(&file);
    }
    free(path);
}

// Depth that would overflow the stack, files of a few bytes, and what is no file at all.
static void test_strange_safetensors(void *unused) {
    (void)unused;
    const char *directory = test_directory();
    char *path = format_string("%s/t.safetensors", directory);
    SafetensorsFile file;
    char reason[1024] = "";
    check(!safetensors_open(&file, path, reason, sizeof(reason)) && strstr(reason, "No such file"), "%s",
          reason);
    check(!safetensors_open(&file, directory, reason, sizeof(reason)) && strstr(reason, "is not a file"),
          "%s", reason);
    for (size_t bytes = 0; bytes < 8; bytes++) {
        write_all(path, "\2\0\0\0\0\0\0\0", bytes);
        check(!safetensors_open(&file, path, reason, sizeof(reason)) && strstr(reason, "fewer than the 8"),
              "%s", reason);
    }
    const int depth = 3000000;
    char *deep = host_allocate((size_t)depth + 6, 1, "a test");
    memcpy(deep, "{\"a\":", 5);
    memset(deep + 5, '[', (size_t)depth);
    write_safetensors(path, deep, (uint64_t)depth + 5, 0);
    check(!safetensors_open(&file, path, reason, sizeof(reason)) && strstr(reason, "not a JSON object"), "%s",
          reason);
    free(deep);
    free(path);
}

// Whatever bytes of a good file change, it is read as tensors inside the file, or refused.
static void test_random_safetensors(void *unused) {
    (void)unused;
    char *path = format_string("%s/t.safetensors", test_directory());
    const char *good = "{\"__metadata__\":{\"format\":\"pt\"}," A "," B "}   ";
    for (int i = 0; i < 3000; i++) {
        char *header = format_string("%s", good);
        for (uint64_t changes = 1 + random_below(3); changes > 0; changes--)
            header[random_below(strlen(good))] = (char)(1 + random_below(127));
        write_safetensors(path, header, strlen(good), 32);
        SafetensorsFile file;
        char reason[1024] = "";
        if (safetensors_open(&file, path, reason, sizeof(reason))) {
            for (int j = 0; j < file.count; j++) {
                char data[32];
                check(file.tensors[j].bytes <= 32 &&
                          safetensors_read(&file, &file.tensors[j], 0, data, file.tensors[j].bytes),
                      "%s: tensor %d cannot be read", header, j);
            }
            safetensors_close(&file);
        } else {
            check(reason[0] != 0, "%s: refused without a reason", header);
        }
        free(header);
    }
    free(path);
}

static void test_safetensors(void *unused) {
    (void)unused;
    char *path = format_string("%s/t.safetensors", test_directory());
    Tensor tensors[] = {
        {.name = "odd \"name\"", .type = STORAGE_BFLOAT16, .dims = 2, .shape = {3, 5}, .count = 15},
        {.name = "second", .type = STORAGE_FLOAT64, .dims = 1, .shape = {7}, .count = 7}};
    size_t size;
    char *header = safetensors_header(tensors, 2, (const char *const[]){"key", "value", NULL}, &size);
    check(size % 8 == 0, "the header has %zu bytes", size);
    char contents[30 + 56], read[30 + 56];
    for (size_t i = 0; i < sizeof(contents); i++) contents[i] = (char)random_below(256);
    char *whole = host_allocate(size + sizeof(contents), 1, "a test");
    memcpy(whole, header, size);
    memcpy(whole + size, contents, sizeof(contents));
    write_all(path, whole, size + sizeof(contents));
    SafetensorsFile file;
    char reason[1024] = "";
    if (safetensors_open(&file, path, reason, sizeof(reason))) {
        check(file.count == 2 && !strcmp(file.metadata, "{\"key\":\"value\"}"), "metadata %s", file.metadata);
        for (size_t i = 0; i < 2; i++) {
            const Tensor *tensor = safetensors_find(&file, tensors[i].name);
            check(tensor && !memcmp(tensor, &tensors[i], sizeof(Tensor)), "%s is not as written",
                  tensors[i].name);
            if (!tensor) continue;
            check(safetensors_read(&file, tensor, 3, read, tensor->bytes - 3) &&
                      !memcmp(read, contents + tensor->offset + 3, tensor->bytes - 3),
                  "%s does not come back", tensor->name);
            check(!safetensors_read(&file, tensor, 1, read, tensor->bytes), "read beyond %s", tensor->name);
            check(!safetensors_read(&file, tensor, tensor->bytes + 1, read, 0), "read from beyond %s",
                  tensor->name);
            check(!safetensors_read(&file, tensor, 8, read, SIZE_MAX - 4), "read around %s", tensor->name);
        }
        check(!safetensors_find(&file, "third"), "found what is not there");
        check(truncate(path, (off_t)size + 80) == 0, "cannot truncate %s", path);
        check(!safetensors_read(&file, safetensors_find(&file, "second"), 0, read, 56), "read what is gone");
        safetensors_close(&file);
    } else {
        check(false, "%s", reason);
    }
    free(whole);
    free(header);
    free(path);
}

void test_checkpoint(void) {
    static const struct {
        StorageType storage;
        const char *name;
    } storages[] = {{STORAGE_FLOAT64, "checkpoint: round trip, float64"},
                    {STORAGE_FLOAT32, "checkpoint: round trip, float32"},
                    {STORAGE_BFLOAT16, "checkpoint: round trip, bfloat16"}};
    test_run("safetensors: round trip", test_safetensors, NULL);
    test_run("safetensors: malformed files", test_hostile_safetensors, NULL);
    test_run("safetensors: strange files", test_strange_safetensors, NULL);
    test_run("safetensors: random changes", test_random_safetensors, NULL);
    for (size_t i = 0; i < COUNT_OF(storages); i++)
        test_run(storages[i].name, test_round_trip, (void *)&storages[i].storage);
    test_run("checkpoint: round trip of large buffers", test_large_round_trip, NULL);
    test_run("checkpoint: equal states, equal bytes", test_equal_bytes, NULL);
    test_run("checkpoint: config.json", test_hugging_face, NULL);
    for (size_t i = 0; i < COUNT_OF(file_names); i++) {
        char *name = format_string("checkpoint: damage to %s", file_names[i]);
        test_run(name, test_damage, (void *)file_names[i]);
        free(name);
    }
    test_run("checkpoint: damage to every byte", test_every_byte, NULL);
    test_run("checkpoint: nothing to resume", test_nothing_to_resume, NULL);
    test_run("checkpoint: other formats", test_other_formats, NULL);
    test_run("checkpoint: latest", test_latest, NULL);
    test_run("checkpoint: retention", test_retention, NULL);
    test_run("checkpoint: debris of crashes", test_debris, NULL);
    test_run("checkpoint: replacement", test_replacement, NULL);
    test_run("checkpoint: failing saves", test_failing_saves, NULL);
    test_run("checkpoint: killed saves", test_killed_saves, NULL);
    test_run("checkpoint: beside training", test_beside_training, NULL);
    test_run("checkpoint: a failure is no end", test_failure_is_no_end, NULL);
    test_run("checkpoint: a failure beside training is no end", test_failure_is_no_end, (void *)"beside");
    test_run("checkpoint: an end beside training", test_end_beside_training, NULL);
    test_run("checkpoint: no memory beside training", test_no_memory_beside_training, NULL);
    test_run("checkpoint: other models", test_other_models, NULL);
    test_run("checkpoint: one from before the guard", test_before_the_guard, NULL);
    test_run("checkpoint: optimizer in several files", test_split_optimizer, NULL);
    test_run("checkpoint: optimizer files of scattered elements", test_scattered_optimizer, NULL);
}
