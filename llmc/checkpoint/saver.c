#include "checkpoint/saver.h"

#include "base/files.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "base/version.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES  ((size_t)16 << 20) // of a tensor on its way to a file
#define MOST_FILES   4                  // of a rank
#define POLL_SECONDS 0.05               // between looks at the other ranks while there is nothing else to do

// A run of device memory that goes into a file.
typedef struct {
    const void *memory;
    size_t bytes;
} Source;

// A file of this rank: a text (JSON, or the header of a safetensors file), then sources.
typedef struct {
    char name[64];
    char *text;
    size_t text_bytes;
    int first_source, source_count;
} PlannedFile;

// A line of the manifest.
typedef struct {
    char name[64];
    int64_t bytes;
    char hash[FILE_HASH_SIZE];
} FileEntry;

// What a rank tells rank 0 about its files.
typedef struct {
    FileEntry entries[MOST_FILES];
    int count;
    char reason[REASON_SIZE]; // what went wrong here; empty: nothing
} Report;

typedef enum { IDLE, PREPARE, WRITE, COMMIT, ABANDON } Phase;
enum { STATE_BUSY, STATE_DONE, STATE_FAILED };

struct Saver {
    const Communicator *communicator;
    bool asynchronous;
    Phase phase;
    SaveOutcome outcome; // to be reported
    char message[REASON_SIZE + 64];
    // the save under way
    char *out_dir;
    int64_t step;
    Retention retention;
    PlannedFile files[MOST_FILES];
    int file_count;
    Source *sources;
    int source_count, source_capacity;
    char *manifest;
    // the sources' bytes, one after the other, or NULL; the memory is kept for the next save
    char *snapshot;
    void *host_memory;
    size_t host_bytes;
    // without a snapshot
    Device *device;
    void *chunk;
    // the phase's thread
    pthread_t thread;
    bool running;
    bool good; // how the phase ended
    atomic_bool cancelled;
    Report report;
};

// One a process, like its exit. A child that forked off has nothing to do with it.
static Saver *under_way;
static pid_t owner;

// --- what this rank writes ------------------------------------------------------------------------------

static PlannedFile *plan_file(Saver *saver, const char *name, char *text, size_t text_bytes) {
    PlannedFile *file = &saver->files[saver->file_count++];
    *file = (PlannedFile){.text = text, .text_bytes = text_bytes, .first_source = saver->source_count};
    snprintf(file->name, sizeof(file->name), "%s", name);
    return file;
}

static void plan_source(Saver *saver, PlannedFile *file, const void *memory, size_t bytes) {
    if (saver->source_count == saver->source_capacity) {
        saver->source_capacity = 2 * saver->source_capacity + 64;
        saver->sources = realloc(saver->sources, (size_t)saver->source_capacity * sizeof(Source));
        if (!saver->sources) fatal("out of host memory: the parts of a checkpoint");
    }
    saver->sources[saver->source_count++] = (Source){memory, bytes};
    file->source_count++;
}

static void plan_json(Saver *saver, const char *name, cJSON *json) {
    char *text = json_text(json, true);
    plan_file(saver, name, text, strlen(text));
    cJSON_Delete(json);
}

static void add_token_or_null(cJSON *json, const char *name, int64_t token) {
    if (token < 0)
        cJSON_AddNullToObject(json, name);
    else
        cJSON_AddNumberToObject(json, name, (double)token);
}

// Hugging Face's LlamaConfig. The rotary base stands there twice: rope_parameters took the place of
// rope_theta in transformers 5.
static void plan_config(Saver *saver, const TrainingState *state, const SaveRequest *request) {
    const ModelConfig *config = state->config;
    const char *dtype = storage_dtype(state->device->ops->storage);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_AddArrayToObject(json, "architectures"),
                         cJSON_CreateString("LlamaForCausalLM"));
    cJSON_AddStringToObject(json, "model_type", "llama");
    cJSON_AddNumberToObject(json, "vocab_size", (double)config->vocab_size);
    cJSON_AddNumberToObject(json, "hidden_size", (double)config->dim);
    cJSON_AddNumberToObject(json, "intermediate_size", (double)config->ffn_dim);
    cJSON_AddNumberToObject(json, "num_hidden_layers", (double)config->layers);
    cJSON_AddNumberToObject(json, "num_attention_heads", (double)config->heads);
    cJSON_AddNumberToObject(json, "num_key_value_heads", (double)config->kv_heads);
    cJSON_AddNumberToObject(json, "head_dim", (double)head_dim(config));
    cJSON_AddNumberToObject(json, "max_position_embeddings", (double)request->seq_len);
    cJSON_AddNumberToObject(json, "rms_norm_eps", config->norm_eps);
    cJSON_AddNumberToObject(json, "rope_theta", config->rope_theta);
    cJSON *rope = cJSON_AddObjectToObject(json, "rope_parameters");
    cJSON_AddStringToObject(rope, "rope_type", "default");
    cJSON_AddNumberToObject(rope, "rope_theta", config->rope_theta);
    cJSON_AddStringToObject(json, "hidden_act", "silu");
    cJSON_AddFalseToObject(json, "attention_bias");
    cJSON_AddFalseToObject(json, "mlp_bias");
    cJSON_AddFalseToObject(json, "tie_word_embeddings");
    cJSON_AddNumberToObject(json, "initializer_range", 0.02);
    cJSON_AddTrueToObject(json, "use_cache");
    cJSON_AddStringToObject(json, "dtype", dtype);
    cJSON_AddStringToObject(json, "torch_dtype", dtype);
    add_token_or_null(json, "bos_token_id", request->separator_token);
    add_token_or_null(json, "eos_token_id", request->separator_token);
    cJSON_AddNullToObject(json, "pad_token_id");
    plan_json(saver, CONFIG_FILE, json);
}

static void plan_model(Saver *saver, const TrainingState *state) {
    const ParameterTable *table = state->table;
    const StorageType storage = state->device->ops->storage;
    Tensor *tensors = host_allocate((size_t)table->count, sizeof(Tensor), "the tensors of a checkpoint");
    for (int i = 0; i < table->count; i++) {
        const Parameter *parameter = &table->list[i];
        tensors[i] = (Tensor){.type = storage,
                              .dims = parameter->dims,
                              .shape = {parameter->shape[0], parameter->shape[1]},
                              .count = parameter->count};
        snprintf(tensors[i].name, sizeof(tensors[i].name), "%s", parameter->name);
    }
    size_t size;
    char *header =
        safetensors_header(tensors, table->count, (const char *const[]){"format", "pt", NULL}, &size);
    PlannedFile *file = plan_file(saver, MODEL_FILE, header, size);
    for (int i = 0; i < table->count; i++) {
        const size_t offset = (size_t)table->list[i].offset * storage_size(storage);
        plan_source(saver, file, (const char *)state->weights + offset, tensors[i].bytes);
    }
    free(tensors);
}

// This rank's parts of the buckets, in the elements of a checkpoint; those that touch are one. Sets *count.
static ElementRange *own_ranges(const TrainingState *state, int *count) {
    const ParameterTable *table = state->table;
    ElementRange *ranges =
        host_allocate((size_t)table->bucket_count, sizeof(ElementRange), "the ranges of a checkpoint");
    *count = 0;
    for (int bucket = 0; bucket < table->bucket_count; bucket++) {
        const ElementRange part = bucket_part_flat(table, bucket, state->communicator->rank);
        if (part.count == 0) continue;
        ElementRange *last = *count > 0 ? &ranges[*count - 1] : NULL;
        if (last && last->first + last->count == part.first)
            last->count += part.count;
        else
            ranges[(*count)++] = part;
    }
    return ranges;
}

// "3,17,8"
static char *list_text(const ElementRange *ranges, int count, bool of_counts) {
    char *text = format_string("%s", "");
    for (int i = 0; i < count; i++) {
        char *longer = format_string("%s%s%ld", text, i > 0 ? "," : "",
                                     (long)(of_counts ? ranges[i].count : ranges[i].first));
        free(text);
        text = longer;
    }
    return text;
}

// The metadata says which elements of the checkpoint these are; a reader takes any number of files. A rank
// without elements, of a model smaller than its ranks can divide, writes a file without tensors.
static void plan_optimizer(Saver *saver, const TrainingState *state) {
    const ParameterTable *table = state->table;
    const Communicator *communicator = state->communicator;
    const StorageType type = accumulator_type(state->device->ops->storage);
    int range_count;
    ElementRange *ranges = own_ranges(state, &range_count);
    int64_t elements = 0;
    for (int i = 0; i < range_count; i++) elements += ranges[i].count;
    Tensor tensors[FLAT_BUFFERS] = {0};
    for (int i = 0; i < FLAT_BUFFERS; i++) {
        strcpy(tensors[i].name, flat_buffer_names[i]);
        tensors[i].type = type;
        tensors[i].dims = 1;
        tensors[i].shape[0] = tensors[i].count = elements;
    }
    char *first = list_text(ranges, range_count, false), *count = list_text(ranges, range_count, true),
         *total = format_string("%ld", (long)table->flat_elements),
         *name = format_string(OPTIMIZER_FILE, communicator->rank, communicator->size);
    const char *const metadata[] = {"format", "pt", "first", first, "count", count, "total", total, NULL};
    size_t size;
    char *header = safetensors_header(tensors, elements > 0 ? FLAT_BUFFERS : 0, metadata, &size);
    PlannedFile *file = plan_file(saver, name, header, size);
    const void *const buffers[FLAT_BUFFERS] = {state->master, state->m, state->v};
    for (int i = 0; i < FLAT_BUFFERS; i++)
        for (int bucket = 0; bucket < table->bucket_count; bucket++) {
            const ElementRange part = bucket_part_flat(table, bucket, communicator->rank);
            const size_t offset = (size_t)training_state_part(state, bucket) * storage_size(type);
            if (part.count > 0)
                plan_source(saver, file, (const char *)buffers[i] + offset,
                            (size_t)part.count * storage_size(type));
        }
    free(name);
    free(total);
    free(count);
    free(first);
    free(ranges);
}

static void plan_trainer(Saver *saver, const SaveRequest *request) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "format_version", FORMAT_VERSION);
    cJSON_AddStringToObject(json, "program", PROGRAM_NAME);
    cJSON_AddStringToObject(json, "version", PROGRAM_VERSION);
    cJSON_AddNumberToObject(json, "step", (double)request->progress.step);
    cJSON_AddNumberToObject(json, "samples", (double)request->progress.samples);
    cJSON_AddNumberToObject(json, "skipped", (double)request->progress.skipped);
    cJSON_AddItemToObject(json, "guard", cJSON_Duplicate(request->guard, true));
    cJSON_AddItemToObject(json, "options", cJSON_Duplicate(request->options, true));
    plan_json(saver, TRAINER_FILE, json);
}

static void plan_files(Saver *saver, const TrainingState *state, const SaveRequest *request) {
    const bool first = saver->communicator->rank == 0;
    if (first) plan_config(saver, state, request);
    if (first) plan_model(saver, state);
    plan_optimizer(saver, state);
    if (first) plan_trainer(saver, request);
}

// --- writing --------------------------------------------------------------------------------------------

// Says why by errno, unless another rank's failure is what stopped this one.
static bool write_failed(Saver *saver, const char *path) {
    if (saver->cancelled) return false;
    snprintf(saver->report.reason, REASON_SIZE, "cannot write %.800s: %s", path, strerror(errno));
    return false;
}

// The sources of a file, by way of a chunk.
static bool append_from_device(Saver *saver, FileWriter *writer, const PlannedFile *file) {
    for (int i = 0; i < file->source_count; i++) {
        const Source *source = &saver->sources[file->first_source + i];
        for (size_t done = 0; done < source->bytes; done += CHUNK_BYTES) {
            const size_t part = source->bytes - done < CHUNK_BYTES ? source->bytes - done : CHUNK_BYTES;
            saver->device->download(saver->device, saver->chunk, (const char *)source->memory + done, part);
            if (!file_append(writer, saver->chunk, part)) return false;
        }
    }
    return true;
}

// The same from the snapshot, where they follow one another. Chunks let it stop early.
static bool append_from_snapshot(Saver *saver, FileWriter *writer, const PlannedFile *file) {
    const char *memory = saver->snapshot;
    size_t bytes = 0;
    for (int i = 0; i < file->first_source; i++) memory += saver->sources[i].bytes;
    for (int i = 0; i < file->source_count; i++) bytes += saver->sources[file->first_source + i].bytes;
    for (size_t done = 0; done < bytes; done += CHUNK_BYTES) {
        const size_t part = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
        if (saver->cancelled || !file_append(writer, memory + done, part)) return false;
    }
    return true;
}

static bool write_file(Saver *saver, const PlannedFile *file) {
    const Path directory = step_path(saver->out_dir, saver->step, STEP_TEMPORARY);
    const Path path = path_below(directory.text, file->name);
    FileEntry *entry = &saver->report.entries[saver->report.count];
    FileWriter writer;
    if (!file_create(&writer, path.text)) return write_failed(saver, path.text);
    if (!file_append(&writer, file->text, file->text_bytes) ||
        !(saver->snapshot ? append_from_snapshot : append_from_device)(saver, &writer, file)) {
        file_abandon(&writer);
        return write_failed(saver, path.text);
    }
    if (!file_finish(&writer, entry->hash)) return write_failed(saver, path.text);
    strcpy(entry->name, file->name);
    entry->bytes = writer.bytes;
    saver->report.count++;
    return true;
}

static bool write_files(Saver *saver) {
    for (int i = 0; i < saver->file_count; i++)
        if (!write_file(saver, &saver->files[i])) return false;
    return true;
}

static bool write_manifest(Saver *saver) {
    const Path directory = step_path(saver->out_dir, saver->step, STEP_TEMPORARY);
    const Path path = path_below(directory.text, MANIFEST_FILE);
    FileWriter writer;
    if (!file_create(&writer, path.text)) return write_failed(saver, path.text);
    if (!file_append(&writer, saver->manifest, strlen(saver->manifest))) {
        file_abandon(&writer);
        return write_failed(saver, path.text);
    }
    return file_finish(&writer, NULL) || write_failed(saver, path.text);
}

// What older checkpoints do is said in the report, and is no failure of this one.
static bool commit(Saver *saver) {
    const bool good = write_manifest(saver) && step_commit(saver->out_dir, saver->step, saver->report.reason);
    if (good)
        step_prune(saver->out_dir, saver->step, &saver->retention, saver->report.reason);
    else
        step_abandon(saver->out_dir, saver->step);
    return good;
}

// --- phases ---------------------------------------------------------------------------------------------

// The work of a phase on this rank, in the phase's thread or in the caller's.
static void *run_phase(void *argument) {
    Saver *saver = (Saver *)argument;
    switch (saver->phase) {
        case PREPARE: saver->good = step_begin(saver->out_dir, saver->step, saver->report.reason); break;
        case WRITE: saver->good = write_files(saver); break;
        case COMMIT: saver->good = commit(saver); break;
        case ABANDON: step_abandon(saver->out_dir, saver->step); break;
        case IDLE: break;
    }
    return NULL;
}

static void start_phase(Saver *saver, Phase phase) {
    saver->phase = phase;
    saver->good = true;
    if (phase != WRITE && saver->communicator->rank > 0) return;
    saver->running = saver->snapshot && pthread_create(&saver->thread, NULL, run_phase, saver) == 0;
    if (!saver->running) run_phase(saver);
}

static void clear_save(Saver *saver) {
    for (int i = 0; i < saver->file_count; i++) free(saver->files[i].text);
    free(saver->out_dir);
    free(saver->manifest);
    free(saver->chunk);
    saver->out_dir = saver->manifest = NULL;
    saver->chunk = NULL;
    saver->snapshot = NULL;
    saver->file_count = saver->source_count = 0;
    memset(&saver->report, 0, sizeof(saver->report));
}

// What rank 0 has to say is the message of all.
static void end_save(Saver *saver, SaveOutcome outcome) {
    communicator_broadcast(saver->communicator, saver->message, sizeof(saver->message),
                           "the end of a checkpoint");
    clear_save(saver);
    under_way = NULL;
    saver->phase = IDLE;
    saver->outcome = outcome;
}

static void set_message(Saver *saver, int rank, const char *reason) {
    char name[32] = "";
    if (saver->communicator->size > 1) snprintf(name, sizeof(name), "rank %d: ", rank);
    snprintf(saver->message, sizeof(saver->message), "saving a checkpoint: %s%s", name, reason);
}

static Report *gather_reports(const Saver *saver) {
    Report *all = host_allocate((size_t)saver->communicator->size, sizeof(Report), "reports of all ranks");
    communicator_gather(saver->communicator, all, &saver->report, sizeof(Report),
                        "the files of a checkpoint");
    return all;
}

static void make_manifest(Saver *saver, const Report *reports) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "format_version", FORMAT_VERSION);
    cJSON *files = cJSON_AddArrayToObject(json, "files");
    for (int rank = 0; rank < saver->communicator->size; rank++)
        for (int i = 0; i < reports[rank].count; i++) {
            const FileEntry *file = &reports[rank].entries[i];
            cJSON *entry = cJSON_CreateObject();
            cJSON_AddStringToObject(entry, "name", file->name);
            cJSON_AddNumberToObject(entry, "bytes", (double)file->bytes);
            cJSON_AddStringToObject(entry, "xxh3_128", file->hash);
            cJSON_AddItemToArray(files, entry);
        }
    saver->manifest = json_text(json, true);
    cJSON_Delete(json);
}

// After the phase in which all ranks wrote.
static void end_write(Saver *saver, bool good) {
    Report *reports = gather_reports(saver);
    // Ranks that only stopped because another failed give no reason.
    for (int rank = saver->communicator->size - 1; rank >= 0; rank--)
        if (reports[rank].reason[0]) set_message(saver, rank, reports[rank].reason);
    if (good && saver->communicator->rank == 0) make_manifest(saver, reports);
    free(reports);
    start_phase(saver, good ? COMMIT : ABANDON);
}

static void go_on(Saver *saver, bool good) {
    if (saver->phase == PREPARE && good) {
        start_phase(saver, WRITE);
    } else if (saver->phase == WRITE) {
        end_write(saver, good);
    } else {
        if (saver->report.reason[0] && saver->phase != ABANDON)
            set_message(saver, saver->communicator->rank, saver->report.reason);
        end_save(saver, saver->phase == COMMIT && good ? SAVE_COMMITTED : SAVE_FAILED);
    }
}

int saver_local_state(Saver *saver) {
    if (saver->running && pthread_tryjoin_np(saver->thread, NULL) == 0) saver->running = false;
    return saver->running ? STATE_BUSY : saver->good ? STATE_DONE : STATE_FAILED;
}

SaveOutcome saver_advance(Saver *saver, const int *states) {
    if (saver->phase != IDLE) {
        bool busy = false, good = true;
        for (int rank = 0; rank < saver->communicator->size; rank++) {
            busy |= states[rank] == STATE_BUSY;
            good &= states[rank] != STATE_FAILED;
        }
        if (!good) saver->cancelled = true;
        if (!busy) go_on(saver, good);
    }
    const SaveOutcome outcome = saver->outcome;
    saver->outcome = SAVE_NONE;
    return outcome;
}

SaveOutcome saver_poll(Saver *saver) {
    int *states = host_allocate((size_t)saver->communicator->size, sizeof(int), "states of all ranks");
    const int mine = saver_local_state(saver);
    // Without a copy a rank writes all it has to before it answers.
    communicator_gather(saver->communicator, states, &mine, sizeof(mine),
                        saver->snapshot ? "saving a checkpoint" : NULL);
    const SaveOutcome outcome = saver_advance(saver, states);
    free(states);
    return outcome;
}

// Not without end, so that the other ranks, who wait for this one's state, know that it is alive.
static void wait_a_little(Saver *saver) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(1e9 * POLL_SECONDS);
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (saver->running && pthread_timedjoin_np(saver->thread, NULL, &until) == 0) saver->running = false;
}

SaveOutcome saver_finish(Saver *saver) {
    SaveOutcome outcome = saver_poll(saver);
    while (saver->phase != IDLE) {
        wait_a_little(saver);
        outcome = saver_poll(saver);
    }
    return outcome;
}

const char *saver_message(const Saver *saver) {
    return saver->message;
}

// --- the end of the process -----------------------------------------------------------------------------

// A save that was begun is brought to its end where this process can do so alone. With others it cannot: they
// may be anywhere. Then only deletions and renames are not cut off; an unfinished .tmp does no harm.
static void finish_at_exit(void) {
    Saver *saver = under_way;
    if (!saver || owner != getpid()) return;
    under_way = NULL;
    if (saver->communicator->size > 1) {
        if (saver->running && saver->phase == COMMIT) pthread_join(saver->thread, NULL);
    } else if (saver_finish(saver) == SAVE_FAILED) {
        warning("%s", saver->message);
    }
}

static void guard_exit(void) {
    if (owner != getpid()) atexit(finish_at_exit);
    owner = getpid();
}

// --- beginning ------------------------------------------------------------------------------------------

// What can be allocated without anything being swapped out; Linux itself promises more than there is.
static size_t available_memory(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file) return SIZE_MAX;
    char line[256];
    unsigned long long kilobytes = 0;
    bool found = false;
    while (!found && fgets(line, sizeof(line), file))
        found = sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1;
    fclose(file);
    return found ? (size_t)kilobytes * 1024 : SIZE_MAX;
}

// In large pages, and touched by all threads at once: the step that waits for the copy then waits less.
static void *allocate_touched(size_t bytes, int sharers) {
    const size_t page = (size_t)2 << 20;
    void *memory;
    if (bytes > available_memory() / (size_t)sharers || posix_memalign(&memory, page, bytes) != 0)
        return NULL;
    madvise(memory, bytes, MADV_HUGEPAGE);
#pragma omp parallel for schedule(static) if (bytes > 16 * page)
    for (size_t offset = 0; offset < bytes; offset += 4096) ((volatile char *)memory)[offset] = 0;
    return memory;
}

// Memory for the snapshot, if there is enough on all ranks.
static bool allocate_snapshot(Saver *saver) {
    size_t bytes = 1;
    for (int i = 0; i < saver->source_count; i++) bytes += saver->sources[i].bytes;
    if (bytes > saver->host_bytes) {
        free(saver->host_memory);
        saver->host_memory = allocate_touched(bytes, (int)max_i64(saver->communicator->local_size, 1));
        saver->host_bytes = saver->host_memory ? bytes : 0;
    }
    const bool here = saver->host_memory != NULL;
    if (!here)
        warning(
            "out of host memory: the copy of what a checkpoint saves needs %zu bytes; training waits while "
            "it is written",
            bytes);
    return communicator_all(saver->communicator, here, "beginning a checkpoint");
}

static void take_snapshot(Saver *saver, Device *device) {
    saver->snapshot = (char *)saver->host_memory;
    char *to = saver->snapshot;
    for (int i = 0; i < saver->source_count; i++) {
        device->download(device, to, saver->sources[i].memory, saver->sources[i].bytes);
        to += saver->sources[i].bytes;
    }
}

void saver_begin(Saver *saver, const TrainingState *state, const SaveRequest *request) {
    assert(saver->phase == IDLE);
    saver->out_dir = format_string("%s", request->out_dir);
    saver->step = request->progress.step;
    saver->retention = request->retention;
    saver->message[0] = 0;
    saver->cancelled = false;
    plan_files(saver, state, request);
    if (saver->asynchronous && allocate_snapshot(saver)) {
        take_snapshot(saver, state->device);
        under_way = saver;
        start_phase(saver, PREPARE);
    } else {
        saver->device = state->device;
        saver->chunk = host_allocate(CHUNK_BYTES, 1, "a chunk of a checkpoint");
        start_phase(saver, PREPARE);
        saver->outcome = saver_finish(saver);
    }
}

Saver *saver_create(const Communicator *communicator, bool asynchronous) {
    Saver *saver = host_allocate(1, sizeof(Saver), "the saver of checkpoints");
    saver->communicator = communicator;
    saver->asynchronous = asynchronous;
    saver->good = true;
    if (asynchronous) guard_exit();
    return saver;
}

void saver_destroy(Saver *saver) {
    assert(saver->phase == IDLE);
    free(saver->sources);
    free(saver->host_memory);
    free(saver);
}
