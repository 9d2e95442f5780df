#include "checkpoint_fixture.h"

#include "base/files.h"
#include "base/json.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const file_names[FIXTURE_FILES] = {"config.json", "model.safetensors",
                                               "optimizer-00000-of-00001.safetensors", "trainer.json",
                                               "manifest.json"};
const Retention keep_all = {1000, 0};
const Communicator alone = {.size = 1};

// --- a model's state ------------------------------------------------------------------------------------

const ModelConfig small_shape = {37, 24, 2, 3, 1, 20, 10000, 1e-5};

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

void fixture_refill(Fixture *model) {
    TrainingState *state = &model->state;
    Device *device = state->device;
    const StorageType storage = device->ops->storage;
    if (state->weights) device->release(device, state->weights);
    state->weights = random_buffer(device, storage, model->table.elements);
    for (int i = 0; i < state->optimizer.count; i++) {
        void **memory = &state->optimizer.list[i].memory;
        if (*memory) device->release(device, *memory);
        *memory = random_buffer(device, accumulator_type(storage), model->table.elements);
    }
}

Fixture *fixture_create(StorageType storage, ModelConfig config) {
    Fixture *model = host_allocate(1, sizeof(Fixture), "a test");
    model->config = config;
    model->table = parameter_table_create(&model->config, 1);
    model->state.device = cpu_device_create(storage);
    model->state.config = &model->config;
    model->state.table = &model->table;
    model->state.communicator = &alone;
    model->state.optimizer =
        (StateBuffers){.list = {{.name = "master"}, {.name = "m"}, {.name = "v"}}, .count = 3};
    fixture_refill(model);
    return model;
}

void fixture_destroy(Fixture *model) {
    TrainingState *state = &model->state;
    state->device->release(state->device, state->weights);
    for (int i = 0; i < state->optimizer.count; i++)
        state->device->release(state->device, state->optimizer.list[i].memory);
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

void check_same_state(const Fixture *a, const Fixture *b) {
    const StorageType storage = a->state.device->ops->storage;
    for (int i = 0; i < a->table.count; i++) {
        const Parameter *p = &a->table.list[i];
        const size_t offset = (size_t)p->offset * storage_size(storage);
        check(same_memory(a->state.device, (char *)a->state.weights + offset,
                          (char *)b->state.weights + offset, (size_t)p->count * storage_size(storage)),
              "%s differs", p->name);
    }
    const size_t bytes = (size_t)a->table.elements * storage_size(accumulator_type(storage));
    for (int i = 0; i < a->state.optimizer.count; i++) {
        const StateBuffer *of_a = &a->state.optimizer.list[i], *of_b = &b->state.optimizer.list[i];
        check(same_memory(a->state.device, of_a->memory, of_b->memory, bytes), "%s differs", of_a->name);
    }
}

// --- saving ---------------------------------------------------------------------------------------------

void save_request(const Fixture *model, const SaveRequest *request, bool asynchronous) {
    Saver *saver = saver_create(&alone, asynchronous);
    saver_begin(saver, &model->state, request);
    if (saver_finish(saver) != SAVE_COMMITTED) fatal("%s", saver_message(saver));
    if (saver_message(saver)[0]) warning("%s", saver_message(saver));
    saver_destroy(saver);
}

SaveRequest new_request(const char *out_dir, int64_t step, Retention retention) {
    cJSON *options = cJSON_CreateObject();
    cJSON_AddStringToObject(options, "lr", "0.002");
    cJSON_AddStringToObject(options, "out", "a \"quoted\" name");
    return (SaveRequest){out_dir, {step, 32 * step, 0}, options, options, 640, 36, retention};
}

void delete_request(SaveRequest *request) {
    cJSON_Delete((cJSON *)request->options);
}

void save(void *argument) {
    const SaveCall *call = (const SaveCall *)argument;
    SaveRequest request = new_request(call->out_dir, call->step, call->retention);
    save_request(call->model, &request, call->asynchronous);
    delete_request(&request);
}

void save_step(const char *out_dir, const Fixture *model, int64_t step) {
    SaveCall call = {out_dir, model, step, keep_all, false};
    save(&call);
}

// --- opening and loading --------------------------------------------------------------------------------

void open_and_load(void *argument) {
    const OpenCall *call = (const OpenCall *)argument;
    Checkpoint checkpoint = checkpoint_open(&alone, call->resume, call->out_dir);
    if (call->model) checkpoint_load(&checkpoint, &call->model->state);
    checkpoint_close(&checkpoint);
}

void check_refused(const char *resume, const char *out_dir, const Fixture *model, const char *message) {
    OpenCall call = {resume, out_dir, model};
    check_dies(open_and_load, &call, message);
}

int64_t open_latest(const char *out_dir, char warnings[4096]) {
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

void check_latest(const char *out_dir, int64_t step, const char *warning) {
    char warnings[4096];
    const int64_t found = open_latest(out_dir, warnings);
    check(found == step, "latest is step %ld, it should be %ld", (long)found, (long)step);
    check(warning ? strstr(warnings, warning) != NULL : !warnings[0], "the warnings were: %s (expected: %s)",
          warnings, warning ? warning : "none");
}

void check_loads(const char *out_dir, const Fixture *expected) {
    Fixture *loaded = fixture_create(expected->state.device->ops->storage, expected->config);
    OpenCall call = {"latest", out_dir, loaded};
    open_and_load(&call);
    check_same_state(expected, loaded);
    fixture_destroy(loaded);
}

// --- files and directories ------------------------------------------------------------------------------

char *new_directory(void) {
    return format_string("%s", test_directory());
}

char *step_file(const char *out_dir, int64_t step, const char *name) {
    return format_string("%s/step_%08ld/%s", out_dir, (long)step, name);
}

char *read_all(const char *path, size_t *size) {
    char *text = file_read_text(path, (size_t)1 << 30, size);
    if (!text) fatal("cannot read %s", path);
    return text;
}

void write_all(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) fatal("cannot write %s", path);
}

bool exists(const char *out_dir, const char *name) {
    char *path = format_string("%s/%s", out_dir, name);
    struct stat status;
    const bool found = stat(path, &status) == 0;
    free(path);
    return found;
}

char *listing(const char *directory) {
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

void check_listing(const char *directory, const char *expected) {
    char *found = listing(directory);
    check(!strcmp(found, expected), "%s holds %s; it should hold %s", directory, found, expected);
    free(found);
}

void make_debris(const char *out_dir, const char *name) {
    char *directory = format_string("%s/%s", out_dir, name),
         *file = format_string("%s/model.safetensors", directory);
    check(directory_make(directory), "cannot make %s", directory);
    write_all(file, "half a file", 11);
    free(file);
    free(directory);
}

void write_manifest(const char *directory) {
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
