#include "checkpoint.h"

#include "files.h"
#include "json.h"
#include "safetensors.h"
#include "version.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FORMAT_VERSION 1
#define CHUNK_BYTES    ((size_t)16 << 20) // of a tensor on its way between device and file
#define MAX_JSON_BYTES ((size_t)64 << 20)
#define ERROR_SIZE     8192

#define CONFIG_FILE    "config.json"
#define MODEL_FILE     "model.safetensors"
#define TRAINER_FILE   "trainer.json"
#define MANIFEST_FILE  "manifest.json"
#define LATEST_FILE    "latest"
#define OPTIMIZER_FILE "optimizer-%05d-of-%05d.safetensors"

// The flat buffers of an optimizer file, in its order.
static const char *const flat_names[] = {"master", "m", "v"};

// --- the directories of checkpoints under --out ---------------------------------------------------------

// step_NNNNNNNN is a checkpoint. step_NNNNNNNN.tmp is one being written or deleted. step_NNNNNNNN.old is one
// that gives way to another of its step: as good as any until that one has its name.
typedef enum { STEP_WHOLE, STEP_OLD, STEP_TEMPORARY, STEP_KINDS } StepKind;

static const char *const step_suffixes[STEP_KINDS] = {"", ".old", ".tmp"};

typedef struct {
    int64_t step;
    StepKind kind;
} StepDirectory;

typedef struct {
    StepDirectory *list; // newest first
    int count;
} StepList;

static char *step_name(int64_t step, StepKind kind) {
    return format_string("step_%08ld%s", (long)step, step_suffixes[kind]);
}

static char *step_path(const char *out_dir, int64_t step, StepKind kind) {
    char *name = step_name(step, kind);
    char *path = format_string("%s/%s", out_dir, name);
    free(name);
    return path;
}

static bool parse_step_name(const char *text, StepDirectory *directory) {
    long step;
    if (sscanf(text, "step_%18ld", &step) != 1 || step < 0) return false;
    for (StepKind kind = 0; kind < STEP_KINDS; kind++) {
        char *name = step_name(step, kind);
        const bool same = !strcmp(name, text);
        free(name);
        *directory = (StepDirectory){step, kind};
        if (same) return true;
    }
    return false;
}

static int compare_steps(const void *a, const void *b) {
    const StepDirectory *first = (const StepDirectory *)a, *second = (const StepDirectory *)b;
    if (first->step != second->step) return first->step < second->step ? 1 : -1;
    return (int)first->kind - (int)second->kind;
}

// An out_dir that cannot be read holds none: whoever needs one finds out by that.
static StepList list_steps(const char *out_dir) {
    StepList steps = {0};
    DIR *directory = opendir(out_dir);
    if (!directory) return steps;
    int capacity = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        StepDirectory found;
        if (!parse_step_name(entry->d_name, &found)) continue;
        if (steps.count == capacity) {
            capacity = 2 * capacity + 16;
            steps.list = (StepDirectory *)realloc(steps.list, (size_t)capacity * sizeof(StepDirectory));
            if (!steps.list) fatal("out of host memory: the list of checkpoints");
        }
        steps.list[steps.count++] = found;
    }
    closedir(directory);
    if (steps.count > 0) qsort(steps.list, (size_t)steps.count, sizeof(StepDirectory), compare_steps);
    return steps;
}

static bool path_exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

// --- saving: one file after the other -------------------------------------------------------------------

typedef struct {
    const TrainingState *state;
    char *directory; // the .tmp that is being written
    void *chunk;     // host memory, CHUNK_BYTES
    cJSON *files;    // entries of the manifest
    FileWriter writer;
    char *path; // of the file that is being written
} Save;

NORETURN static void save_failed(const Save *save, const char *action, const char *path) {
    const int cause = errno;
    directory_remove(save->directory);
    fatal("saving a checkpoint: cannot %s %s: %s", action, path, strerror(cause));
}

static void begin_file(Save *save, const char *name) {
    save->path = format_string("%s/%s", save->directory, name);
    if (!file_create(&save->writer, save->path)) save_failed(save, "create", save->path);
}

static void append(Save *save, const void *data, size_t bytes) {
    if (!file_append(&save->writer, data, bytes)) save_failed(save, "write", save->path);
}

static void append_from_device(Save *save, const void *memory, size_t bytes) {
    Device *device = save->state->device;
    for (size_t done = 0; done < bytes; done += CHUNK_BYTES) {
        const size_t part = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
        device->download(device, save->chunk, (const char *)memory + done, part);
        append(save, save->chunk, part);
    }
}

static void end_file(Save *save, const char *name) {
    char hash[FILE_HASH_SIZE];
    if (!file_finish(&save->writer, hash)) save_failed(save, "write", save->path);
    cJSON *entry = cJSON_CreateObject();
    cJSON_AddStringToObject(entry, "name", name);
    cJSON_AddNumberToObject(entry, "bytes", (double)save->writer.bytes);
    cJSON_AddStringToObject(entry, "xxh3_128", hash);
    cJSON_AddItemToArray(save->files, entry);
    free(save->path);
    save->path = NULL;
}

static void save_json(Save *save, const char *name, const cJSON *json) {
    char *text = json_text(json, true);
    begin_file(save, name);
    append(save, text, strlen(text));
    end_file(save, name);
    free(text);
}

static void add_token_or_null(cJSON *json, const char *name, int64_t token) {
    if (token < 0)
        cJSON_AddNullToObject(json, name);
    else
        cJSON_AddNumberToObject(json, name, (double)token);
}

// Hugging Face's LlamaConfig. The rotary base stands there twice: rope_parameters took the place of
// rope_theta in transformers 5.
static void save_config(Save *save, int64_t seq_len, int64_t separator_token) {
    const ModelConfig *config = save->state->config;
    const char *dtype = storage_dtype(save->state->device->ops->storage);
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
    cJSON_AddNumberToObject(json, "max_position_embeddings", (double)seq_len);
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
    add_token_or_null(json, "bos_token_id", separator_token);
    add_token_or_null(json, "eos_token_id", separator_token);
    cJSON_AddNullToObject(json, "pad_token_id");
    save_json(save, CONFIG_FILE, json);
    cJSON_Delete(json);
}

static void append_header(Save *save, Tensor *tensors, int count, const char *const *metadata) {
    size_t size;
    char *header = safetensors_header(tensors, count, metadata, &size);
    append(save, header, size);
    free(header);
}

static void save_model(Save *save) {
    const ParameterTable *table = save->state->table;
    const StorageType storage = save->state->device->ops->storage;
    Tensor *tensors =
        (Tensor *)host_allocate((size_t)table->count, sizeof(Tensor), "the tensors of a checkpoint");
    for (int i = 0; i < table->count; i++) {
        const Parameter *parameter = &table->list[i];
        Tensor *tensor = &tensors[i];
        *tensor = (Tensor){.type = storage,
                           .dims = parameter->dims,
                           .shape = {parameter->shape[0], parameter->shape[1]},
                           .count = parameter->count};
        snprintf(tensor->name, sizeof(tensor->name), "%s", parameter->name);
    }
    begin_file(save, MODEL_FILE);
    append_header(save, tensors, table->count, (const char *const[]){"format", "pt", NULL});
    for (int i = 0; i < table->count; i++) {
        const size_t offset = (size_t)table->list[i].offset * storage_size(storage);
        append_from_device(save, (const char *)save->state->weights + offset, tensors[i].bytes);
    }
    end_file(save, MODEL_FILE);
    free(tensors);
}

// Elements [0, elements) of the flat buffers, in one file; a reader takes any number of them.
static void save_optimizer(Save *save) {
    const TrainingState *state = save->state;
    const int64_t elements = state->table->elements;
    const void *const buffers[] = {state->master, state->m, state->v};
    Tensor tensors[COUNT_OF(flat_names)] = {0};
    for (size_t i = 0; i < COUNT_OF(flat_names); i++) {
        strcpy(tensors[i].name, flat_names[i]);
        tensors[i].type = accumulator_type(state->device->ops->storage);
        tensors[i].dims = 1;
        tensors[i].shape[0] = tensors[i].count = elements;
    }
    char *name = format_string(OPTIMIZER_FILE, 0, 1);
    char *count = format_string("%ld", (long)elements);
    const char *const metadata[] = {"format", "pt", "first", "0", "count", count, "total", count, NULL};
    begin_file(save, name);
    append_header(save, tensors, COUNT_OF(tensors), metadata);
    for (size_t i = 0; i < COUNT_OF(tensors); i++) append_from_device(save, buffers[i], tensors[i].bytes);
    end_file(save, name);
    free(count);
    free(name);
}

static void save_trainer(Save *save, const Progress *progress, const cJSON *options) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "format_version", FORMAT_VERSION);
    cJSON_AddStringToObject(json, "program", PROGRAM_NAME);
    cJSON_AddStringToObject(json, "version", PROGRAM_VERSION);
    cJSON_AddNumberToObject(json, "step", (double)progress->step);
    cJSON_AddNumberToObject(json, "samples", (double)progress->samples);
    cJSON_AddItemToObject(json, "options", cJSON_Duplicate(options, true));
    save_json(save, TRAINER_FILE, json);
    cJSON_Delete(json);
}

static void save_manifest(Save *save) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "format_version", FORMAT_VERSION);
    cJSON_AddItemToObject(json, "files", cJSON_Duplicate(save->files, true));
    save_json(save, MANIFEST_FILE, json);
    cJSON_Delete(json);
}

// --- saving: the order that survives a crash at any point -----------------------------------------------

// Puts the written .tmp in its place. Wherever this is cut short, `final` or `old` is whole.
static void move_into_place(Save *save, const char *out_dir, const char *final, const char *old) {
    const bool replaces = path_exists(final);
    if (replaces && rename(final, old) != 0) save_failed(save, "rename", final);
    if (rename(save->directory, final) != 0) {
        const int cause = errno;
        if (replaces) rename(old, final);
        errno = cause;
        save_failed(save, "rename", save->directory);
    }
    if (!directory_sync(out_dir)) fatal("saving a checkpoint: cannot sync %s: %s", out_dir, strerror(errno));
    if (replaces && !directory_remove(old)) warning("cannot remove %s: %s", old, strerror(errno));
}

// What a save, a replacement or a deletion left behind when the process died in it.
static void clean_up_after_crash(const char *out_dir) {
    StepList steps = list_steps(out_dir);
    for (int i = 0; i < steps.count; i++) {
        const StepKind kind = steps.list[i].kind;
        if (kind == STEP_WHOLE) continue;
        char *path = step_path(out_dir, steps.list[i].step, kind);
        char *final = step_path(out_dir, steps.list[i].step, STEP_WHOLE);
        const bool needed = kind == STEP_OLD && !path_exists(final);
        if (needed ? rename(path, final) != 0 : !directory_remove(path))
            fatal("saving a checkpoint: cannot %s %s: %s", needed ? "rename" : "remove", path,
                  strerror(errno));
        free(final);
        free(path);
    }
    free(steps.list);
}

static void write_latest(const char *out_dir, int64_t step) {
    char *path = format_string("%s/%s", out_dir, LATEST_FILE);
    char *name = step_name(step, STEP_WHOLE);
    char *text = format_string("%s\n", name);
    if (!file_replace_text(path, text) || !directory_sync(out_dir))
        fatal("saving a checkpoint: cannot write %s: %s", path, strerror(errno));
    free(text);
    free(name);
    free(path);
}

// Checkpoints newer than `step` belong to a run that went on from an earlier one; they are not older, and
// stay.
static void prune(const char *out_dir, int64_t step, const Retention *retention) {
    StepList steps = list_steps(out_dir);
    int64_t kept = 0;
    for (int i = 0; i < steps.count; i++) {
        const StepDirectory *directory = &steps.list[i];
        if (directory->kind != STEP_WHOLE || directory->step > step) continue;
        if (kept++ < max_i64(retention->keep, 1)) continue;
        if (retention->keep_every > 0 && directory->step % retention->keep_every == 0) continue;
        // Under this name a deletion that is cut short leaves no damaged checkpoint.
        char *path = step_path(out_dir, directory->step, STEP_WHOLE);
        char *doomed = step_path(out_dir, directory->step, STEP_TEMPORARY);
        if (rename(path, doomed) != 0 || !directory_remove(doomed))
            warning("cannot remove the old checkpoint %s: %s", path, strerror(errno));
        free(doomed);
        free(path);
    }
    free(steps.list);
}

void checkpoint_save(const char *out_dir, const TrainingState *state, const Progress *progress,
                     const cJSON *options, int64_t seq_len, int64_t separator_token,
                     const Retention *retention) {
    if (!directory_make(out_dir)) fatal("saving a checkpoint: cannot make %s: %s", out_dir, strerror(errno));
    clean_up_after_crash(out_dir);
    char *final = step_path(out_dir, progress->step, STEP_WHOLE);
    char *old = step_path(out_dir, progress->step, STEP_OLD);
    Save save = {.state = state, .directory = step_path(out_dir, progress->step, STEP_TEMPORARY)};
    save.chunk = host_allocate(CHUNK_BYTES, 1, "a chunk of a checkpoint");
    save.files = cJSON_CreateArray();
    if (mkdir(save.directory, 0777) != 0) save_failed(&save, "make", save.directory);
    save_config(&save, seq_len, separator_token);
    save_model(&save);
    save_optimizer(&save);
    save_trainer(&save, progress, options);
    save_manifest(&save);
    if (!directory_sync(save.directory)) save_failed(&save, "sync", save.directory);
    move_into_place(&save, out_dir, final, old);
    write_latest(out_dir, progress->step);
    prune(out_dir, progress->step, retention);
    cJSON_Delete(save.files);
    free(save.chunk);
    free(save.directory);
    free(old);
    free(final);
}

// --- opening: verification ------------------------------------------------------------------------------

typedef struct {
    const char *directory;
    char text[ERROR_SIZE]; // what is wrong with it
} Damage;

static bool damaged(Damage *damage, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool damaged(Damage *damage, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(damage->text, sizeof(damage->text), format, arguments);
    va_end(arguments);
    return false;
}

// A JSON object of this format's version, or NULL. *text, for the caller to free, is the file as it is.
static cJSON *read_json(Damage *damage, const char *name, char **text, size_t *size) {
    char *path = format_string("%s/%s", damage->directory, name);
    *text = file_read_text(path, MAX_JSON_BYTES, size);
    free(path);
    if (!*text) {
        damaged(damage, "%s cannot be read: %s", name, strerror(errno));
        return NULL;
    }
    cJSON *json = cJSON_Parse(*text);
    int64_t version;
    if (!cJSON_IsObject(json))
        damaged(damage, "%s is not a JSON object", name);
    else if (!json_integer(cJSON_GetObjectItemCaseSensitive(json, "format_version"), &version))
        damaged(damage, "%s has no format_version", name);
    else if (version != FORMAT_VERSION)
        damaged(damage, "%s has format version %ld; this program reads version %d", name, (long)version,
                FORMAT_VERSION);
    else
        return json;
    cJSON_Delete(json);
    return NULL;
}

// An entry of the manifest: name, size and hash.
typedef struct {
    const char *name, *hash;
    int64_t bytes;
} FileEntry;

static bool parse_entry(Damage *damage, const cJSON *json, FileEntry *entry) {
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(json, "name");
    const cJSON *hash = cJSON_GetObjectItemCaseSensitive(json, "xxh3_128");
    if (!cJSON_IsString(name) || !cJSON_IsString(hash) ||
        !json_integer(cJSON_GetObjectItemCaseSensitive(json, "bytes"), &entry->bytes))
        return damaged(damage, "%s has an entry without name, bytes and xxh3_128", MANIFEST_FILE);
    if (strchr(name->valuestring, '/'))
        return damaged(damage, "%s names \"%s\", which is not in this directory", MANIFEST_FILE,
                       name->valuestring);
    entry->name = name->valuestring;
    entry->hash = hash->valuestring;
    return true;
}

static bool check_file_size(Damage *damage, const FileEntry *entry) {
    char *path = format_string("%s/%s", damage->directory, entry->name);
    struct stat status;
    const bool found = stat(path, &status) == 0;
    free(path);
    if (!found) return damaged(damage, "%s cannot be read: %s", entry->name, strerror(errno));
    if (status.st_size == entry->bytes) return true;
    return damaged(damage, "%s has %ld bytes, not the %ld it was written with", entry->name,
                   (long)status.st_size, (long)entry->bytes);
}

static bool check_file_hash(Damage *damage, const FileEntry *entry) {
    char *path = format_string("%s/%s", damage->directory, entry->name);
    char hash[FILE_HASH_SIZE];
    const bool read = file_hash(path, hash);
    free(path);
    if (!read) return damaged(damage, "%s cannot be read: %s", entry->name, strerror(errno));
    if (!strcmp(hash, entry->hash)) return true;
    return damaged(damage, "%s has the hash %s, not the %.40s it was written with", entry->name, hash,
                   entry->hash);
}

static bool check_files(Damage *damage, const cJSON *files,
                        bool (*check_file)(Damage *damage, const FileEntry *entry)) {
    const cJSON *item;
    FileEntry entry;
    cJSON_ArrayForEach(item, files) if (!parse_entry(damage, item, &entry) ||
                                        !check_file(damage, &entry)) return false;
    return true;
}

static bool check_listed(Damage *damage, const cJSON *files, const char *prefix) {
    const cJSON *item;
    FileEntry entry;
    cJSON_ArrayForEach(item, files) if (parse_entry(damage, item, &entry) &&
                                        !strncmp(entry.name, prefix, strlen(prefix))) return true;
    return damaged(damage, "%s lists no %s", MANIFEST_FILE, prefix);
}

static bool check_manifest(Damage *damage, const cJSON *manifest, const char *text, size_t size) {
    // No hash vouches for the manifest itself, but there is only one way to write it.
    char *canonical = json_text(manifest, true);
    const bool same = strlen(canonical) == size && !memcmp(canonical, text, size);
    free(canonical);
    if (!same) return damaged(damage, "%s is not as it was written", MANIFEST_FILE);
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(manifest, "files");
    if (!cJSON_IsArray(files)) return damaged(damage, "%s has no list of files", MANIFEST_FILE);
    return check_files(damage, files, check_file_size) && check_listed(damage, files, CONFIG_FILE) &&
           check_listed(damage, files, MODEL_FILE) && check_listed(damage, files, "optimizer-") &&
           check_listed(damage, files, TRAINER_FILE) && check_files(damage, files, check_file_hash);
}

static bool check_trainer(Damage *damage, cJSON *trainer, Checkpoint *checkpoint) {
    if (!json_integer(cJSON_GetObjectItemCaseSensitive(trainer, "step"), &checkpoint->progress.step) ||
        !json_integer(cJSON_GetObjectItemCaseSensitive(trainer, "samples"), &checkpoint->progress.samples))
        return damaged(damage, "%s does not say which step and sample it is at", TRAINER_FILE);
    if (!cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(trainer, "options")))
        return damaged(damage, "%s holds no options", TRAINER_FILE);
    checkpoint->options = cJSON_DetachItemFromObjectCaseSensitive(trainer, "options");
    checkpoint->path = format_string("%s", damage->directory);
    return true;
}

// Fills in `checkpoint` if the directory holds a good one; else `damage` says what is wrong.
static bool verify(Damage *damage, const char *directory, Checkpoint *checkpoint) {
    damage->directory = directory;
    char *text;
    size_t size;
    cJSON *manifest = read_json(damage, MANIFEST_FILE, &text, &size);
    bool good = manifest && check_manifest(damage, manifest, text, size);
    cJSON_Delete(manifest);
    free(text);
    if (!good) return false;
    cJSON *trainer = read_json(damage, TRAINER_FILE, &text, &size);
    good = trainer && check_trainer(damage, trainer, checkpoint);
    cJSON_Delete(trainer);
    free(text);
    return good;
}

// --- opening: which one ---------------------------------------------------------------------------------

// The step that the file `latest` names; INT64_MAX if there is none.
static int64_t read_latest(const char *out_dir) {
    char *path = format_string("%s/%s", out_dir, LATEST_FILE);
    char *text = file_read_text(path, 256, NULL);
    StepDirectory named = {INT64_MAX, STEP_WHOLE};
    if (text) {
        text[strcspn(text, "\n")] = 0;
        char *target = format_string("%s/%s", out_dir, text);
        if (!parse_step_name(text, &named) || named.kind != STEP_WHOLE) {
            warning("%s does not name a checkpoint", path);
            named.step = INT64_MAX;
        } else if (!path_exists(target)) {
            warning("%s names %s, which does not exist", path, text);
        }
        free(target);
    }
    free(text);
    free(path);
    return named.step;
}

static bool open_one_of(const char *out_dir, const StepList *steps, int64_t above, int64_t up_to,
                        Checkpoint *checkpoint) {
    for (int i = 0; i < steps->count; i++) {
        const StepDirectory *directory = &steps->list[i];
        if (directory->kind == STEP_TEMPORARY || directory->step <= above || directory->step > up_to)
            continue;
        char *path = step_path(out_dir, directory->step, directory->kind);
        Damage damage;
        const bool good = verify(&damage, path, checkpoint);
        if (!good) warning("the checkpoint %s is damaged: %s", path, damage.text);
        free(path);
        if (good) return true;
    }
    return false;
}

Checkpoint checkpoint_open(const char *resume, const char *out_dir) {
    Checkpoint checkpoint = {0};
    if (strcmp(resume, "latest")) {
        Damage damage;
        if (!verify(&damage, resume, &checkpoint))
            fatal("--resume %s: not a good checkpoint: %s (--resume latest takes the newest good one under "
                  "--out)",
                  resume, damage.text);
        return checkpoint;
    }
    if (!out_dir)
        fatal("--resume latest looks for checkpoints under --out: give it too, or name a checkpoint");
    StepList steps = list_steps(out_dir);
    const int64_t latest = read_latest(out_dir);
    // First the one that `latest` names and those before it; then, better than nothing, those after.
    const bool found = open_one_of(out_dir, &steps, -1, latest, &checkpoint) ||
                       open_one_of(out_dir, &steps, latest, INT64_MAX, &checkpoint);
    if (!found)
        fatal("--resume latest: there is no %scheckpoint (step_NNNNNNNN) in --out %s",
              steps.count > 0 ? "good " : "", out_dir);
    free(steps.list);
    return checkpoint;
}

void checkpoint_close(Checkpoint *checkpoint) {
    free(checkpoint->path);
    cJSON_Delete(checkpoint->options);
    *checkpoint = (Checkpoint){0};
}

// --- loading --------------------------------------------------------------------------------------------

static SafetensorsFile open_tensors(const Checkpoint *checkpoint, const char *name) {
    char *path = format_string("%s/%s", checkpoint->path, name);
    SafetensorsFile file;
    char error[ERROR_SIZE];
    if (!safetensors_open(&file, path, error, sizeof(error))) fatal("--resume: %s: %s", path, error);
    free(path);
    return file;
}

static void load_tensor(const SafetensorsFile *file, const Tensor *tensor, Device *device, void *memory,
                        void *chunk) {
    for (size_t done = 0; done < tensor->bytes; done += CHUNK_BYTES) {
        const size_t part = tensor->bytes - done < CHUNK_BYTES ? tensor->bytes - done : CHUNK_BYTES;
        if (!safetensors_read(file, tensor, done, chunk, part))
            fatal("--resume: cannot read %s: %s ends after %zu bytes", file->path, tensor->name, done);
        device->upload(device, (char *)memory + done, chunk, part);
    }
}

static void shape_text(char text[64], int dims, const int64_t *shape) {
    if (dims == 1)
        snprintf(text, 64, "[%ld]", (long)shape[0]);
    else
        snprintf(text, 64, "[%ld, %ld]", (long)shape[0], (long)shape[1]);
}

// The tensor of that name, if it is of the type and shape that the run needs; fails if not.
static const Tensor *expect_tensor(const SafetensorsFile *file, const char *name, StorageType type, int dims,
                                   const int64_t *shape) {
    const Tensor *tensor = safetensors_find(file, name);
    if (!tensor) fatal("--resume: %s has no tensor %s, which this model needs", file->path, name);
    if (tensor->type != type)
        fatal("--resume: %s holds %s as %s; this device keeps it as %s: go on with the --device it was "
              "written by",
              file->path, name, storage_name(tensor->type), storage_name(type));
    char found[64], needed[64];
    shape_text(found, tensor->dims, tensor->shape);
    shape_text(needed, dims, shape);
    if (strcmp(found, needed))
        fatal("--resume: %s holds %s with shape %s; this model needs %s", file->path, name, found, needed);
    return tensor;
}

static void refuse_extra_tensors(const SafetensorsFile *file, const ParameterTable *table) {
    for (int i = 0; i < file->count; i++) {
        int row = 0;
        while (row < table->count && strcmp(table->list[row].name, file->tensors[i].name)) row++;
        if (row == table->count)
            fatal("--resume: %s holds %s, which this model does not have", file->path, file->tensors[i].name);
    }
}

static void load_model(const Checkpoint *checkpoint, const TrainingState *state, void *chunk) {
    const StorageType storage = state->device->ops->storage;
    SafetensorsFile file = open_tensors(checkpoint, MODEL_FILE);
    refuse_extra_tensors(&file, state->table);
    for (int i = 0; i < state->table->count; i++) {
        const Parameter *parameter = &state->table->list[i];
        const Tensor *tensor =
            expect_tensor(&file, parameter->name, storage, parameter->dims, parameter->shape);
        const size_t offset = (size_t)parameter->offset * storage_size(storage);
        load_tensor(&file, tensor, state->device, (char *)state->weights + offset, chunk);
    }
    safetensors_close(&file);
}

// How many files the optimizer's state was written to.
static int count_optimizer_files(const Checkpoint *checkpoint) {
    DIR *directory = opendir(checkpoint->path);
    if (!directory) fatal("--resume: cannot read %s: %s", checkpoint->path, strerror(errno));
    int files = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        int rank, world;
        if (sscanf(entry->d_name, "optimizer-%9d-of-%9d.", &rank, &world) != 2 || world < 1) continue;
        if (files != 0 && files != world)
            fatal("--resume: %s holds optimizer files of %d and of %d ranks", checkpoint->path, files, world);
        files = world;
    }
    closedir(directory);
    if (files == 0) fatal("--resume: %s holds no optimizer file", checkpoint->path);
    return files;
}

static int64_t metadata_integer(const SafetensorsFile *file, const char *key) {
    cJSON *metadata = file->metadata ? cJSON_Parse(file->metadata) : NULL;
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metadata, key));
    char *end = NULL;
    errno = 0;
    const int64_t value = text ? strtoll(text, &end, 10) : -1;
    if (!text || end == text || *end || errno || value < 0)
        fatal("--resume: the metadata of %s has no whole number \"%s\"", file->path, key);
    cJSON_Delete(metadata);
    return value;
}

typedef struct {
    int64_t first, count;
} Range;

static int compare_ranges(const void *a, const void *b) {
    const int64_t first = ((const Range *)a)->first, second = ((const Range *)b)->first;
    return (first > second) - (first < second);
}

static Range load_optimizer_file(const Checkpoint *checkpoint, const char *name, const TrainingState *state,
                                 void *chunk) {
    const StorageType type = accumulator_type(state->device->ops->storage);
    void *const buffers[] = {state->master, state->m, state->v};
    SafetensorsFile file = open_tensors(checkpoint, name);
    const int64_t total = metadata_integer(&file, "total"), elements = state->table->elements;
    const Range range = {metadata_integer(&file, "first"), metadata_integer(&file, "count")};
    if (total != elements)
        fatal("--resume: %s is of %ld elements, this model has %ld", file.path, (long)total, (long)elements);
    if (range.first > total || range.count > total - range.first)
        fatal("--resume: %s has %ld elements from %ld on, beyond its total of %ld", file.path,
              (long)range.count, (long)range.first, (long)total);
    if (file.count != COUNT_OF(flat_names))
        fatal("--resume: %s has %d tensors, not master, m and v", file.path, file.count);
    for (size_t i = 0; i < COUNT_OF(flat_names); i++) {
        const Tensor *tensor = expect_tensor(&file, flat_names[i], type, 1, &range.count);
        const size_t offset = (size_t)range.first * storage_size(type);
        load_tensor(&file, tensor, state->device, (char *)buffers[i] + offset, chunk);
    }
    safetensors_close(&file);
    return range;
}

static void load_optimizer(const Checkpoint *checkpoint, const TrainingState *state, void *chunk) {
    const int files = count_optimizer_files(checkpoint);
    Range *ranges = (Range *)host_allocate((size_t)files, sizeof(Range), "the list of optimizer files");
    for (int i = 0; i < files; i++) {
        char *name = format_string(OPTIMIZER_FILE, i, files);
        ranges[i] = load_optimizer_file(checkpoint, name, state, chunk);
        free(name);
    }
    qsort(ranges, (size_t)files, sizeof(Range), compare_ranges);
    int64_t covered = 0;
    for (int i = 0; i < files; i++) {
        if (ranges[i].first != covered)
            fatal(
                "--resume: the optimizer files in %s do not fit together: one begins at element %ld, not %ld",
                checkpoint->path, (long)ranges[i].first, (long)covered);
        covered += ranges[i].count;
    }
    if (covered != state->table->elements)
        fatal("--resume: the optimizer files in %s end at element %ld of %ld", checkpoint->path,
              (long)covered, (long)state->table->elements);
    free(ranges);
}

void checkpoint_load(const Checkpoint *checkpoint, const TrainingState *state) {
    void *chunk = host_allocate(CHUNK_BYTES, 1, "a chunk of a checkpoint");
    load_model(checkpoint, state, chunk);
    load_optimizer(checkpoint, state, chunk);
    free(chunk);
}
