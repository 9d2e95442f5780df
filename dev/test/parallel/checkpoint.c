// Checkpoints that several processes write and read together: any number of them reads what any other number
// wrote, and what fails on one fails on all.
#include "dev/test/test.h"

#include "base/files.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/saver.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef USE_MPI
#include <mpi.h>

static const Communicator *world;

// --- fewer processes than there are ---------------------------------------------------------------------

// The first `size` processes of the world as a run of their own; the others get one of size 0.
static Communicator first_ranks(int size) {
    MPI_Comm handle;
    const bool inside = world->rank < size;
    MPI_Comm_split(MPI_COMM_WORLD, inside ? 0 : MPI_UNDEFINED, world->rank, &handle);
    Communicator communicator = {.rank = world->rank, .size = inside ? size : 0};
    communicator.handles[GROUP_WORLD] = inside ? handle : NULL;
    return communicator;
}

static void leave(Communicator *communicator) {
    MPI_Comm handle = (MPI_Comm)communicator->handles[GROUP_WORLD];
    if (communicator->size > 0) MPI_Comm_free(&handle);
    communicator_barrier(world, "a test");
}

// A directory of rank 0's that all know.
static char *shared_directory(void) {
    char path[256] = "";
    if (world->rank == 0) snprintf(path, sizeof(path), "%s", test_directory());
    communicator_broadcast(world, path, sizeof(path), "a test");
    return format_string("%s", path);
}

// --- a model whose every element is known ---------------------------------------------------------------

enum { STATE_BUFFERS = 3, WEIGHTS = STATE_BUFFERS, BUFFERS }; // the weights after the optimizer's

typedef struct {
    ModelConfig config;
    ParameterTable table;
    TrainingState state;
} Model;

static const ModelConfig small_shape = {37, 24, 2, 3, 1, 20, 10000, 1e-5};
static const ModelConfig smallest_shape = {2, 2, 1,     1,
                                           1, 2, 10000, 1e-5}; // too small for each rank to have some

// Element `index` of a buffer, as if there were one rank: no two are the same.
static float element_value(int buffer, int64_t index, int version) {
    return (float)(1 + index) + (float)buffer * 0.25f + (float)version * 0.125f;
}

static int64_t buffer_elements(const Model *model, int buffer) {
    const bool part = buffer != WEIGHTS && model->state.sharded;
    return model->table.elements / (part ? model->table.ranks : 1);
}

// Where the element of a checkpoint stands in a buffer of this rank; -1: nowhere. And by which bucket.
static int64_t element_place(const Model *model, int buffer, int bucket, int64_t index) {
    const ParameterBucket *b = &model->table.buckets[bucket];
    const int64_t inside = index - b->flat_offset;
    if (buffer == WEIGHTS || !model->state.sharded) return b->offset + inside;
    const int64_t part = b->count / model->table.ranks, rank = inside / part;
    return rank == model->state.communicator->rank ? b->offset / model->table.ranks + inside % part : -1;
}

static void **buffer_of(Model *model, int buffer) {
    TrainingState *state = &model->state;
    return buffer == WEIGHTS ? &state->weights : &state->optimizer.list[buffer].memory;
}

// Padding is `padding`, elements are as element_value says, or `padding` too if version is negative.
static void fill(Model *model, int version, float padding) {
    for (int buffer = 0; buffer < BUFFERS; buffer++) {
        float *values = (float *)*buffer_of(model, buffer);
        for (int64_t i = 0; i < buffer_elements(model, buffer); i++) values[i] = padding;
        for (int bucket = 0; version >= 0 && bucket < model->table.bucket_count; bucket++) {
            const ParameterBucket *b = &model->table.buckets[bucket];
            for (int64_t i = b->flat_offset; i < b->flat_offset + b->flat_count; i++) {
                const int64_t place = element_place(model, buffer, bucket, i);
                if (place >= 0) values[place] = element_value(buffer, i, version);
            }
        }
    }
}

static Model *model_create(const Communicator *communicator, const ModelConfig *config, bool sharded) {
    Model *model = host_allocate(1, sizeof(Model), "a test");
    model->config = *config;
    model->table = parameter_table_create(&model->config, communicator->size);
    Device *device = cpu_device_create(STORAGE_FLOAT32);
    model->state = (TrainingState){.device = device,
                                   .config = &model->config,
                                   .table = &model->table,
                                   .optimizer = {{{"master", NULL}, {"m", NULL}, {"v", NULL}}, STATE_BUFFERS},
                                   .communicator = communicator,
                                   .sharded = sharded};
    for (int buffer = 0; buffer < BUFFERS; buffer++)
        *buffer_of(model, buffer) =
            device->allocate(device, (size_t)buffer_elements(model, buffer) * sizeof(float));
    return model;
}

static void model_destroy(Model *model) {
    Device *device = model->state.device;
    for (int buffer = 0; buffer < BUFFERS; buffer++) device->release(device, *buffer_of(model, buffer));
    device->destroy(device);
    parameter_table_free(&model->table);
    free(model);
}

// The optimizer's buffers whole, padding included; weights tensor by tensor.
static void check_contents(Model *model, int version) {
    const ParameterTable *table = &model->table;
    for (int buffer = 0; buffer < STATE_BUFFERS; buffer++) {
        const int64_t count = buffer_elements(model, buffer);
        float *expected = host_allocate((size_t)count, sizeof(float), "a test");
        for (int bucket = 0; bucket < table->bucket_count; bucket++) {
            const ParameterBucket *b = &table->buckets[bucket];
            for (int64_t i = b->flat_offset; i < b->flat_offset + b->flat_count; i++) {
                const int64_t place = element_place(model, buffer, bucket, i);
                if (place >= 0) expected[place] = element_value(buffer, i, version);
            }
        }
        check(!memcmp(expected, *buffer_of(model, buffer), (size_t)count * sizeof(float)), "%s differs",
              model->state.optimizer.list[buffer].name);
        free(expected);
    }
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->list[i];
        const ParameterBucket *b = &table->buckets[p->bucket];
        const float *values = (const float *)model->state.weights + p->offset;
        int64_t wrong = 0;
        for (int64_t j = 0; j < p->count; j++)
            wrong += values[j] != element_value(WEIGHTS, p->offset - b->offset + b->flat_offset + j, version);
        check(wrong == 0, "%s: %ld values differ", p->name, (long)wrong);
    }
}

// --- saving and loading ---------------------------------------------------------------------------------

static SaveOutcome save(const Model *model, const char *out_dir, int64_t step, bool asynchronous,
                        char *message) {
    Saver *saver = saver_create(model->state.communicator, asynchronous);
    cJSON *options = cJSON_CreateObject();
    cJSON_AddStringToObject(options, "lr", "0.002");
    const SaveRequest request = {out_dir, {step, 32 * step, 0}, options, options, 640, 36, {10, 0}};
    saver_begin(saver, &model->state, &request);
    const SaveOutcome outcome = saver_finish(saver);
    if (message) snprintf(message, REASON_SIZE, "%s", saver_message(saver));
    check(message || outcome == SAVE_COMMITTED, "%s", saver_message(saver));
    cJSON_Delete(options);
    saver_destroy(saver);
    return outcome;
}

// By `size` ranks, who say whether it is there and what is in it.
static void write_checkpoint(const char *out_dir, const ModelConfig *config, int size, bool sharded,
                             bool asynchronous) {
    Communicator communicator = first_ranks(size);
    if (communicator.size > 0) {
        Model *model = model_create(&communicator, config, sharded);
        fill(model, size, 77);
        save(model, out_dir, 1, asynchronous, NULL);
        model_destroy(model);
    }
    leave(&communicator);
}

static void read_checkpoint(const char *out_dir, const ModelConfig *config, int size, bool sharded,
                            int writers) {
    Communicator communicator = first_ranks(size);
    if (communicator.size > 0) {
        Model *model = model_create(&communicator, config, sharded);
        fill(model, -1, -5);
        Checkpoint checkpoint = checkpoint_open(&communicator, "latest", out_dir);
        char *path = format_string("%s/step_00000001", out_dir);
        check(!strcmp(checkpoint.path, path), "opened %s", checkpoint.path);
        check(checkpoint.progress.step == 1 && checkpoint.progress.samples == 32, "step %ld, samples %ld",
              (long)checkpoint.progress.step, (long)checkpoint.progress.samples);
        const char *option = cJSON_GetStringValue(cJSON_GetObjectItem(checkpoint.options, "lr"));
        check(option && !strcmp(option, "0.002"), "the options are lost");
        checkpoint_load(&checkpoint, &model->state);
        check_contents(model, writers);
        checkpoint_close(&checkpoint);
        model_destroy(model);
        free(path);
    }
    leave(&communicator);
}

static void check_same_files(const char *a, const char *b) {
    struct dirent **entries;
    const int count = scandir(a, &entries, NULL, alphasort);
    check(count > 2, "there is nothing in %s", a);
    for (int i = 0; i < count; i++) {
        if (entries[i]->d_name[0] != '.') {
            char *first = format_string("%s/%s", a, entries[i]->d_name),
                 *second = format_string("%s/%s", b, entries[i]->d_name);
            char first_hash[FILE_HASH_SIZE], second_hash[FILE_HASH_SIZE];
            check(file_hash(first, first_hash) && file_hash(second, second_hash) &&
                      !strcmp(first_hash, second_hash),
                  "%s and %s differ", first, second);
            free(first);
            free(second);
        }
        free(entries[i]);
    }
    free(entries);
}

// Every number of writers and readers, with sharded buffers and without.
static void check_all_sizes(const ModelConfig *config) {
    for (int writers = 1; writers <= world->size; writers++) {
        char *out_dirs[4];
        for (int way = 0; way < 4; way++) {
            out_dirs[way] = shared_directory();
            write_checkpoint(out_dirs[way], config, writers, way % 2, way / 2);
        }
        char *first = format_string("%s/step_00000001", out_dirs[0]);
        for (int way = 1; world->rank == 0 && way < 4; way++) {
            char *other = format_string("%s/step_00000001", out_dirs[way]);
            check_same_files(first, other);
            free(other);
        }
        for (int readers = 1; readers <= world->size; readers++)
            for (int sharded = 0; sharded < 2; sharded++)
                read_checkpoint(out_dirs[0], config, readers, sharded, writers);
        for (int way = 0; way < 4; way++) free(out_dirs[way]);
        free(first);
    }
}

static void test_all_sizes(void *unused) {
    (void)unused;
    check_all_sizes(&small_shape);
}

static void test_ranks_without_elements(void *unused) {
    (void)unused;
    check_all_sizes(&smallest_shape);
}

static void check_entries(const char *out_dir, const char *const *names, int expected) {
    if (world->rank > 0) return;
    struct dirent **entries;
    const int count = scandir(out_dir, &entries, NULL, alphasort);
    check(count == expected + 2, "%s holds %d entries, not %d", out_dir, count - 2, expected);
    for (int i = 0; i < count; i++) {
        if (count == expected + 2 && i >= 2)
            check(!strcmp(entries[i]->d_name, names[i - 2]), "%s holds %s", out_dir, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}

// What is saved is the state at the beginning; all ranks learn in the same step that it is done.
static void test_beside_training(void *unused) {
    (void)unused;
    char *out_dir = shared_directory();
    Model *model = model_create(world, &small_shape, true),
          *loaded = model_create(world, &small_shape, false);
    Saver *saver = saver_create(world, true);
    cJSON *options = cJSON_CreateObject();
    for (int64_t step = 1; step <= 8; step++) {
        const SaveRequest request = {out_dir, {step, step, 0}, options, options, 640, 36, {2, 0}};
        fill(model, (int)step, 0);
        saver_begin(saver, &model->state, &request);
        fill(model, -1, -1);
        SaveOutcome outcome = SAVE_NONE;
        for (int polls = 0; outcome == SAVE_NONE && polls < 60000; polls++) {
            usleep((useconds_t)(random_below(500) * (uint64_t)(1 + world->rank)));
            outcome = saver_poll(saver);
        }
        check(outcome == SAVE_COMMITTED && !saver_message(saver)[0], "outcome %d: %s", outcome,
              saver_message(saver));
        Checkpoint checkpoint = checkpoint_open(world, "latest", out_dir);
        check(checkpoint.progress.step == step, "step %ld", (long)checkpoint.progress.step);
        checkpoint_load(&checkpoint, &loaded->state);
        check_contents(loaded, (int)step);
        checkpoint_close(&checkpoint);
    }
    check_entries(out_dir, (const char *const[]){"latest", "step_00000007", "step_00000008"}, 3);
    cJSON_Delete(options);
    saver_destroy(saver);
    model_destroy(model);
    model_destroy(loaded);
    free(out_dir);
}

// --- failures -------------------------------------------------------------------------------------------

// A disk that is full for this process, or not any more.
static void limit_files(rlim_t bytes) {
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void test_failing_rank(void *unused) {
    (void)unused;
    signal(SIGXFSZ, SIG_IGN); // writing beyond the limit is then an error like any other
    char *out_dir = shared_directory();
    Model *model = model_create(world, &small_shape, true);
    fill(model, 3, 0);
    save(model, out_dir, 1, false, NULL);
    fill(model, 4, 0);
    for (int failing = 0; failing < world->size; failing++)
        for (int64_t step = 1; step <= 2; step++)
            for (int asynchronous = 0; asynchronous < 2; asynchronous++) {
                char message[REASON_SIZE], expected[64];
                if (world->rank == failing) limit_files(1000);
                const SaveOutcome outcome = save(model, out_dir, step, asynchronous, message);
                limit_files(RLIM_INFINITY);
                snprintf(expected, sizeof(expected), "saving a checkpoint: rank %d: cannot write ", failing);
                check(outcome == SAVE_FAILED && strstr(message, expected) &&
                          strstr(message, "File too large"),
                      "with a failing rank %d: outcome %d, \"%s\"", failing, outcome, message);
                communicator_barrier(world, "a test");
                check_entries(out_dir, (const char *const[]){"latest", "step_00000001"}, 2);
                communicator_barrier(world, "a test");
            }
    fill(model, -1, 0);
    Checkpoint checkpoint = checkpoint_open(world, "latest", out_dir);
    checkpoint_load(&checkpoint, &model->state);
    check_contents(model, 3);
    save(model, out_dir, 2, true, NULL);
    check_entries(out_dir, (const char *const[]){"latest", "step_00000001", "step_00000002"}, 3);
    checkpoint_close(&checkpoint);
    model_destroy(model);
    free(out_dir);
}

static void test_no_directory(void *unused) {
    (void)unused;
    char *directory = shared_directory(), *out_dir = format_string("%s/file", directory),
         message[REASON_SIZE];
    FILE *file = world->rank == 0 ? fopen(out_dir, "w") : NULL;
    if (file) fclose(file);
    Model *model = model_create(world, &small_shape, false);
    fill(model, 3, 0);
    for (int asynchronous = 0; asynchronous < 2; asynchronous++) {
        const SaveOutcome outcome = save(model, out_dir, 1, asynchronous, message);
        check(outcome == SAVE_FAILED && strstr(message, "rank 0: cannot make ") &&
                  strstr(message, "/file: Not a directory"),
              "outcome %d, \"%s\"", outcome, message);
    }
    model_destroy(model);
    free(out_dir);
    free(directory);
}

// Rank 0 names the damaged one, and all take the one before it.
static void test_damaged_newest(void *unused) {
    (void)unused;
    char *out_dir = shared_directory();
    Model *model = model_create(world, &small_shape, true);
    for (int64_t step = 1; step <= 2; step++) {
        fill(model, (int)step, 0);
        save(model, out_dir, step, true, NULL);
    }
    char *damaged = format_string("%s/step_00000002/optimizer-%05d-of-%05d.safetensors", out_dir,
                                  world->size - 1, world->size);
    if (world->rank == 0) check(truncate(damaged, 100) == 0, "cannot truncate %s", damaged);
    FILE *captured = tmpfile();
    fflush(stderr);
    const int original = dup(STDERR_FILENO);
    dup2(fileno(captured), STDERR_FILENO);
    Checkpoint checkpoint = checkpoint_open(world, "latest", out_dir);
    dup2(original, STDERR_FILENO);
    close(original);
    rewind(captured);
    char said[4096];
    said[fread(said, 1, sizeof(said) - 1, captured)] = 0;
    fclose(captured);
    check(world->rank == 0 ? strstr(said, "step_00000002 is damaged: optimizer-") != NULL : !said[0],
          "says \"%s\"", said);
    checkpoint_load(&checkpoint, &model->state);
    check_contents(model, 1);
    checkpoint_close(&checkpoint);
    model_destroy(model);
    free(damaged);
    free(out_dir);
}

void test_parallel_checkpoint(const Communicator *communicator) {
    world = communicator;
    test_run("parallel checkpoint: any number of ranks reads any other", test_all_sizes, NULL);
    test_run("parallel checkpoint: ranks without elements", test_ranks_without_elements, NULL);
    test_run("parallel checkpoint: beside training", test_beside_training, NULL);
    test_run("parallel checkpoint: a failing rank", test_failing_rank, NULL);
    test_run("parallel checkpoint: no directory", test_no_directory, NULL);
    test_run("parallel checkpoint: a damaged newest one", test_damaged_newest, NULL);
}

#else

void test_parallel_checkpoint(const Communicator *communicator) {
    (void)communicator;
}

#endif
