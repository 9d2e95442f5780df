#include "checkpoint/checkpoint.h"

#include "checkpoint/directory.h"
#include "base/files.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK_BYTES    ((size_t)16 << 20) // of a tensor on its way between file and device
#define LARGE_BYTES    ((int64_t)64 << 20)
#define MAX_JSON_BYTES ((size_t)64 << 20)
#define ERROR_SIZE     8192

const char *const flat_buffer_names[FLAT_BUFFERS] = {"master", "m", "v"};

int64_t training_state_part(const TrainingState *state, int bucket) {
    return state->sharded ? state->table->buckets[bucket].offset / state->table->ranks
                          : bucket_part(state->table, bucket, state->communicator->rank).first;
}

// --- verification ---------------------------------------------------------------------------------------

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
    make_printable(damage->text);
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

typedef struct {
    FileEntry *list;
    int count;
} FileEntries;

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

static bool parse_entries(Damage *damage, const cJSON *files, FileEntries *entries) {
    if (!cJSON_IsArray(files)) return damaged(damage, "%s has no list of files", MANIFEST_FILE);
    entries->list =
        host_allocate((size_t)cJSON_GetArraySize(files), sizeof(FileEntry), "the files of a checkpoint");
    const cJSON *item;
    cJSON_ArrayForEach (item, files)
        if (!parse_entry(damage, item, &entries->list[entries->count++])) return false;
    return true;
}

static bool check_file_size(Damage *damage, const FileEntry *entry) {
    struct stat status;
    if (stat(path_below(damage->directory, entry->name).text, &status) != 0)
        return damaged(damage, "%s cannot be read: %s", entry->name, strerror(errno));
    if (status.st_size == entry->bytes) return true;
    return damaged(damage, "%s has %ld bytes, not the %ld it was written with", entry->name,
                   (long)status.st_size, (long)entry->bytes);
}

static bool check_file_hash(Damage *damage, const FileEntry *entry) {
    char hash[FILE_HASH_SIZE];
    if (!file_hash(path_below(damage->directory, entry->name).text, hash))
        return damaged(damage, "%s cannot be read: %s", entry->name, strerror(errno));
    if (!strcmp(hash, entry->hash)) return true;
    return damaged(damage, "%s has the hash %s, not the %.40s it was written with", entry->name, hash,
                   entry->hash);
}

// One thread a file, if there is enough to read.
static bool check_hashes(Damage *damage, const FileEntries *entries) {
    bool good = true;
    int64_t bytes = 0;
    for (int i = 0; i < entries->count; i++) bytes += min_i64(entries->list[i].bytes, LARGE_BYTES);
#pragma omp parallel for schedule(dynamic) if (bytes >= LARGE_BYTES)
    for (int i = 0; i < entries->count; i++) {
        Damage found = {.directory = damage->directory};
        if (check_file_hash(&found, &entries->list[i])) continue;
#pragma omp critical
        {
            memcpy(damage->text, found.text, sizeof(damage->text));
            good = false;
        }
    }
    return good;
}

static bool check_listed(Damage *damage, const FileEntries *entries, const char *name) {
    for (int i = 0; i < entries->count; i++)
        if (!strcmp(entries->list[i].name, name)) return true;
    return damaged(damage, "%s lists no %s", MANIFEST_FILE, name);
}

// The files of all ranks of one number of ranks, which is stored in *ranks.
static bool check_optimizer_listed(Damage *damage, const FileEntries *entries, int *ranks) {
    *ranks = 0;
    for (int i = 0; i < entries->count; i++) {
        int rank, of;
        if (sscanf(entries->list[i].name, "optimizer-%9d-of-%9d.", &rank, &of) != 2 || of < 1) continue;
        if (*ranks != 0 && *ranks != of)
            return damaged(damage, "%s lists optimizer files of %d and of %d ranks", MANIFEST_FILE, *ranks,
                           of);
        *ranks = of;
    }
    if (*ranks == 0) return damaged(damage, "%s lists no optimizer file", MANIFEST_FILE);
    for (int rank = 0; rank < *ranks; rank++) {
        char name[64];
        snprintf(name, sizeof(name), OPTIMIZER_FILE, rank, *ranks);
        if (!check_listed(damage, entries, name)) return false;
    }
    return true;
}

static bool check_manifest(Damage *damage, const cJSON *manifest, const char *text, size_t size,
                           Checkpoint *checkpoint) {
    // No hash vouches for the manifest itself, but there is only one way to write it.
    char *canonical = json_text(manifest, true);
    const bool same = strlen(canonical) == size && !memcmp(canonical, text, size);
    free(canonical);
    if (!same) return damaged(damage, "%s is not as it was written", MANIFEST_FILE);
    FileEntries entries = {0};
    bool good = parse_entries(damage, cJSON_GetObjectItemCaseSensitive(manifest, "files"), &entries);
    for (int i = 0; good && i < entries.count; i++) good = check_file_size(damage, &entries.list[i]);
    good = good && check_listed(damage, &entries, CONFIG_FILE) &&
           check_listed(damage, &entries, MODEL_FILE) && check_listed(damage, &entries, TRAINER_FILE) &&
           check_optimizer_listed(damage, &entries, &checkpoint->optimizer_files) &&
           check_hashes(damage, &entries);
    free(entries.list);
    return good;
}

static bool check_trainer(Damage *damage, cJSON *trainer, Checkpoint *checkpoint) {
    if (!json_integer(cJSON_GetObjectItemCaseSensitive(trainer, "step"), &checkpoint->progress.step) ||
        !json_integer(cJSON_GetObjectItemCaseSensitive(trainer, "samples"), &checkpoint->progress.samples))
        return damaged(damage, "%s does not say which step and sample it is at", TRAINER_FILE);
    if (!cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(trainer, "options")))
        return damaged(damage, "%s holds no options", TRAINER_FILE);
    // Runs that knew no guard left out no update.
    const cJSON *skipped = cJSON_GetObjectItemCaseSensitive(trainer, "skipped");
    if (skipped && !json_integer(skipped, &checkpoint->progress.skipped))
        return damaged(damage, "%s does not say how many steps were skipped", TRAINER_FILE);
    checkpoint->guard = cJSON_DetachItemFromObjectCaseSensitive(trainer, "guard");
    if (!checkpoint->guard) checkpoint->guard = cJSON_CreateObject();
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
    bool good = manifest && check_manifest(damage, manifest, text, size, checkpoint);
    cJSON_Delete(manifest);
    free(text);
    if (!good) return false;
    cJSON *trainer = read_json(damage, TRAINER_FILE, &text, &size);
    good = trainer && check_trainer(damage, trainer, checkpoint);
    cJSON_Delete(trainer);
    free(text);
    return good;
}

// --- opening --------------------------------------------------------------------------------------------

static bool open_one_of(const char *out_dir, const StepList *steps, int64_t above, int64_t up_to,
                        Checkpoint *checkpoint) {
    for (int i = 0; i < steps->count; i++) {
        const StepDirectory *directory = &steps->list[i];
        if (directory->kind == STEP_TEMPORARY || directory->step <= above || directory->step > up_to)
            continue;
        const Path path = step_path(out_dir, directory->step, directory->kind);
        Damage damage;
        if (verify(&damage, path.text, checkpoint)) return true;
        warning("the checkpoint %s is damaged: %s", path.text, damage.text);
    }
    return false;
}

static Checkpoint open_latest(const char *out_dir) {
    Checkpoint checkpoint = {0};
    if (!out_dir)
        fatal("--resume latest looks for checkpoints under --out: give it too, or name a checkpoint");
    StepList steps;
    if (!step_list(out_dir, &steps) && errno != ENOENT)
        fatal("--resume latest: cannot read --out %s: %s", out_dir, strerror(errno));
    const int64_t latest = step_read_latest(out_dir);
    // First the one that `latest` names and those before it; then, better than nothing, those after.
    const bool found = open_one_of(out_dir, &steps, -1, latest, &checkpoint) ||
                       open_one_of(out_dir, &steps, latest, INT64_MAX, &checkpoint);
    if (!found)
        fatal("--resume latest: there is no %scheckpoint (step_NNNNNNNN) in --out %s",
              steps.count > 0 ? "good " : "", out_dir);
    free(steps.list);
    return checkpoint;
}

static Checkpoint open_named(const char *resume) {
    Checkpoint checkpoint = {0};
    Damage damage;
    if (!verify(&damage, resume, &checkpoint))
        fatal(
            "--resume %s: not a good checkpoint: %s (--resume latest takes the newest good one under --out)",
            resume, damage.text);
    return checkpoint;
}

static char *broadcast_text(const Communicator *communicator, char *text) {
    size_t bytes = text ? strlen(text) + 1 : 0;
    communicator_broadcast(communicator, &bytes, sizeof(bytes), "opening a checkpoint");
    if (communicator->rank > 0) text = host_allocate(bytes, 1, "a checkpoint's options");
    communicator_broadcast(communicator, text, bytes, "opening a checkpoint");
    return text;
}

// What rank 0 found, to all.
static void broadcast_checkpoint(const Communicator *communicator, Checkpoint *checkpoint) {
    const bool first = communicator->rank == 0;
    char *options = broadcast_text(communicator, first ? json_text(checkpoint->options, false) : NULL);
    char *guard = broadcast_text(communicator, first ? json_text(checkpoint->guard, false) : NULL);
    checkpoint->path = broadcast_text(communicator, checkpoint->path);
    communicator_broadcast(communicator, &checkpoint->progress, sizeof(Progress), "opening a checkpoint");
    communicator_broadcast(communicator, &checkpoint->optimizer_files, sizeof(int), "opening a checkpoint");
    if (!first) checkpoint->options = cJSON_Parse(options);
    if (!first) checkpoint->guard = cJSON_Parse(guard);
    free(options);
    free(guard);
}

Checkpoint checkpoint_open(const Communicator *communicator, const char *resume, const char *out_dir) {
    Checkpoint checkpoint = {0};
    if (communicator->rank == 0)
        checkpoint = strcmp(resume, "latest") ? open_named(resume) : open_latest(out_dir);
    if (communicator->size > 1) broadcast_checkpoint(communicator, &checkpoint);
    return checkpoint;
}

void checkpoint_close(Checkpoint *checkpoint) {
    free(checkpoint->path);
    cJSON_Delete(checkpoint->options);
    cJSON_Delete(checkpoint->guard);
    *checkpoint = (Checkpoint){0};
}

// --- what has to be in the files ------------------------------------------------------------------------

static bool open_tensors(Damage *damage, const char *name, SafetensorsFile *file) {
    const Path path = path_below(damage->directory, name);
    char reason[ERROR_SIZE / 2];
    return safetensors_open(file, path.text, reason, sizeof(reason)) ||
           damaged(damage, "%s: %s", path.text, reason);
}

static void shape_text(char text[64], int dims, const int64_t *shape) {
    if (dims == 1)
        snprintf(text, 64, "[%ld]", (long)shape[0]);
    else
        snprintf(text, 64, "[%ld, %ld]", (long)shape[0], (long)shape[1]);
}

// Whether the file has a tensor of that name, of the type and shape that the run needs.
static bool check_tensor(Damage *damage, const SafetensorsFile *file, const char *name, StorageType type,
                         int dims, const int64_t *shape) {
    const Tensor *tensor = safetensors_find(file, name);
    if (!tensor) return damaged(damage, "%s has no tensor %s, which this model needs", file->path, name);
    if (tensor->type != type)
        return damaged(
            damage, "%s holds %s as %s, not as %s; a run goes on with the --device and --dtype it began with",
            file->path, name, storage_name(tensor->type), storage_name(type));
    char found[64], needed[64];
    shape_text(found, tensor->dims, tensor->shape);
    shape_text(needed, dims, shape);
    return !strcmp(found, needed) ||
           damaged(damage, "%s holds %s with shape %s; this model needs %s", file->path, name, found, needed);
}

static bool check_no_others(Damage *damage, const SafetensorsFile *file, const ParameterTable *table) {
    for (int i = 0; i < file->count; i++) {
        int row = 0;
        while (row < table->count && strcmp(table->list[row].name, file->tensors[i].name)) row++;
        if (row == table->count)
            return damaged(damage, "%s holds %s, which this model does not have", file->path,
                           file->tensors[i].name);
    }
    return true;
}

static bool check_model(Damage *damage, const SafetensorsFile *file, const ParameterTable *table,
                        StorageType storage) {
    for (int i = 0; i < table->count; i++) {
        const Parameter *parameter = &table->list[i];
        if (!check_tensor(damage, file, parameter->name, storage, parameter->dims, parameter->shape))
            return false;
    }
    return check_no_others(damage, file, table);
}

// --- optimizer files ------------------------------------------------------------------------------------

// The elements that one file holds, in the order of its tensors.
typedef struct {
    ElementRange *ranges;
    int count;
    int64_t elements;
} OptimizerPart;

// The number at *text, which moves behind it and a comma; false if there is none.
static bool next_number(const char **text, int64_t *value) {
    char *end;
    errno = 0;
    *value = strtoll(*text, &end, 10);
    if (**text < '0' || **text > '9' || errno != 0 || (*end != ',' && *end != 0)) return false;
    *text = *end == ',' ? end + 1 : end;
    return *end == 0 || end[1] != 0;
}

static bool parse_ranges(Damage *damage, const SafetensorsFile *file, const char *first, const char *count,
                         int64_t total, OptimizerPart *part) {
    size_t most = 1;
    for (const char *comma = first; (comma = strchr(comma, ',')); comma++) most++;
    part->ranges = host_allocate(most, sizeof(ElementRange), "the ranges of a file");
    while (*first && *count) {
        ElementRange *range = &part->ranges[part->count++];
        if (!next_number(&first, &range->first) || !next_number(&count, &range->count))
            return damaged(damage, "the metadata of %s is not of whole numbers", file->path);
        if (range->first > total || range->count > total - range->first)
            return damaged(damage, "%s has %ld elements from %ld on, beyond its total of %ld", file->path,
                           (long)range->count, (long)range->first, (long)total);
        part->elements += range->count;
        if (part->elements > total)
            return damaged(damage, "%s has more than its total of %ld elements", file->path, (long)total);
    }
    return (!*first && !*count) ||
           damaged(damage, "the metadata of %s has more of \"first\" or of \"count\"", file->path);
}

static bool read_metadata(Damage *damage, const SafetensorsFile *file, int64_t elements,
                          OptimizerPart *part) {
    cJSON *metadata = file->metadata ? cJSON_Parse(file->metadata) : NULL;
    static const char *const keys[] = {"first", "count", "total"};
    const char *texts[COUNT_OF(keys)];
    bool good = true;
    for (size_t i = 0; good && i < COUNT_OF(keys); i++) {
        texts[i] = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metadata, keys[i]));
        good = texts[i] || damaged(damage, "the metadata of %s has no \"%s\"", file->path, keys[i]);
    }
    int64_t total = 0;
    if (good && (!next_number(&texts[2], &total) || *texts[2]))
        good = damaged(damage, "the metadata of %s has no whole number \"total\"", file->path);
    if (good && total != elements)
        good = damaged(damage, "%s is of %ld elements, this model has %ld", file->path, (long)total,
                       (long)elements);
    good = good && parse_ranges(damage, file, texts[0], texts[1], total, part);
    cJSON_Delete(metadata);
    return good;
}

static bool check_flat_buffers(Damage *damage, const SafetensorsFile *file, StorageType type,
                               const OptimizerPart *part) {
    const int needed = part->elements > 0 ? FLAT_BUFFERS : 0;
    if (file->count != needed)
        return damaged(damage, "%s has %d tensors, not %s", file->path, file->count,
                       needed ? "master, m and v" : "0");
    for (int i = 0; i < needed; i++)
        if (!check_tensor(damage, file, flat_buffer_names[i], type, 1, &part->elements)) return false;
    return true;
}

// Opens file `index` of a checkpoint's `files` and reads which elements it holds.
static bool open_optimizer(Damage *damage, int index, int files, StorageType type, int64_t elements,
                           SafetensorsFile *file, OptimizerPart *part) {
    char name[64];
    snprintf(name, sizeof(name), OPTIMIZER_FILE, index, files);
    *part = (OptimizerPart){0};
    if (!open_tensors(damage, name, file)) return false;
    if (read_metadata(damage, file, elements, part) && check_flat_buffers(damage, file, type, part))
        return true;
    safetensors_close(file);
    return false;
}

static int compare_ranges(const void *a, const void *b) {
    const int64_t first = ((const ElementRange *)a)->first, second = ((const ElementRange *)b)->first;
    return (first > second) - (first < second);
}

// Whether the parts hold every element once.
static bool check_cover(Damage *damage, const OptimizerPart *parts, int files, int64_t elements) {
    int count = 0;
    for (int i = 0; i < files; i++) count += parts[i].count;
    ElementRange *ranges = host_allocate((size_t)count, sizeof(ElementRange), "the ranges of a checkpoint");
    count = 0;
    for (int i = 0; i < files; i++)
        for (int j = 0; j < parts[i].count; j++)
            if (parts[i].ranges[j].count > 0) ranges[count++] = parts[i].ranges[j];
    qsort(ranges, (size_t)count, sizeof(ElementRange), compare_ranges);
    int64_t covered = 0;
    bool good = true;
    for (int i = 0; good && i < count; i++) {
        if (ranges[i].first != covered)
            good = damaged(
                damage, "the optimizer files in %s do not fit together: one begins at element %ld, not %ld",
                damage->directory, (long)ranges[i].first, (long)covered);
        covered += ranges[i].count;
    }
    free(ranges);
    return good &&
           (covered == elements || damaged(damage, "the optimizer files in %s end at element %ld of %ld",
                                           damage->directory, (long)covered, (long)elements));
}

static void free_parts(OptimizerPart *parts, int files) {
    for (int i = 0; i < files; i++) free(parts[i].ranges);
    free(parts);
}

// Which elements each file holds: all together every one of them, once. NULL if that is not so; else `files`
// of them, for free_parts.
static OptimizerPart *read_parts(Damage *damage, int files, StorageType type, int64_t elements) {
    OptimizerPart *parts = host_allocate((size_t)files, sizeof(OptimizerPart), "the optimizer files");
    bool good = true;
    for (int i = 0; good && i < files; i++) {
        SafetensorsFile file;
        good = open_optimizer(damage, i, files, type, elements, &file, &parts[i]);
        if (good) safetensors_close(&file);
    }
    if (good && check_cover(damage, parts, files, elements)) return parts;
    free_parts(parts, files);
    return NULL;
}

// --- loading --------------------------------------------------------------------------------------------

// Bytes [offset, offset + bytes) of a tensor, to the device.
static void load_bytes(const SafetensorsFile *file, const Tensor *tensor, size_t offset, size_t bytes,
                       Device *device, void *memory, void *chunk) {
    for (size_t done = 0; done < bytes; done += CHUNK_BYTES) {
        const size_t part = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
        errno = 0;
        if (!safetensors_read(file, tensor, offset + done, chunk, part))
            fatal("--resume: cannot read %s: %s after %zu bytes: %s", file->path, tensor->name, offset + done,
                  errno ? strerror(errno) : "the file ends there");
        device->upload(device, (char *)memory + done, chunk, part);
    }
}

static SafetensorsFile open_model(const Checkpoint *checkpoint, const TrainingState *state) {
    Damage damage = {.directory = checkpoint->path};
    SafetensorsFile file;
    if (!open_tensors(&damage, MODEL_FILE, &file) ||
        !check_model(&damage, &file, state->table, state->device->ops->storage))
        fatal("--resume: %s", damage.text);
    return file;
}

static void load_model(const SafetensorsFile *file, const TrainingState *state, void *chunk) {
    const size_t size = storage_size(state->device->ops->storage);
    for (int i = 0; i < state->table->count; i++) {
        const Parameter *parameter = &state->table->list[i];
        const Tensor *tensor = safetensors_find(file, parameter->name);
        load_bytes(file, tensor, 0, tensor->bytes, state->device,
                   (char *)state->weights + (size_t)parameter->offset * size, chunk);
    }
}

// What this rank keeps of a bucket: elements of the checkpoint, and the element of master, m and v where they
// go.
typedef struct {
    ElementRange range;
    int64_t memory;
} Piece;

static Piece kept_piece(const TrainingState *state, int bucket) {
    const ParameterBucket *b = &state->table->buckets[bucket];
    if (!state->sharded) return (Piece){{b->flat_offset, b->flat_count}, b->offset};
    return (Piece){bucket_part_flat(state->table, bucket, state->communicator->rank),
                   training_state_part(state, bucket)};
}

// The elements that are both in a piece and in `range`, which stands at element `place` of the file's
// tensors.
static void load_overlap(const SafetensorsFile *file, ElementRange range, int64_t place, Piece piece,
                         const TrainingState *state, void *chunk) {
    const int64_t first = max_i64(range.first, piece.range.first);
    const int64_t end = min_i64(range.first + range.count, piece.range.first + piece.range.count);
    if (first >= end) return;
    const size_t size = storage_size(accumulator_type(state->device->ops->storage));
    void *const buffers[FLAT_BUFFERS] = {state->master, state->m, state->v};
    for (int i = 0; i < FLAT_BUFFERS; i++) {
        char *memory = (char *)buffers[i] + (size_t)(piece.memory + first - piece.range.first) * size;
        load_bytes(file, safetensors_find(file, flat_buffer_names[i]),
                   (size_t)(place + first - range.first) * size, (size_t)(end - first) * size, state->device,
                   memory, chunk);
    }
}

static bool overlaps(const OptimizerPart *part, const TrainingState *state) {
    for (int i = 0; i < part->count; i++)
        for (int bucket = 0; bucket < state->table->bucket_count; bucket++) {
            const ElementRange kept = kept_piece(state, bucket).range, range = part->ranges[i];
            if (max_i64(range.first, kept.first) <
                min_i64(range.first + range.count, kept.first + kept.count))
                return true;
        }
    return false;
}

static void load_part(const SafetensorsFile *file, const OptimizerPart *part, const TrainingState *state,
                      void *chunk) {
    int64_t place = 0;
    for (int i = 0; i < part->count; i++) {
        for (int bucket = 0; bucket < state->table->bucket_count; bucket++)
            load_overlap(file, part->ranges[i], place, kept_piece(state, bucket), state, chunk);
        place += part->ranges[i].count;
    }
}

static OptimizerPart *open_parts(const Checkpoint *checkpoint, const TrainingState *state) {
    Damage damage = {.directory = checkpoint->path};
    OptimizerPart *parts =
        read_parts(&damage, checkpoint->optimizer_files, accumulator_type(state->device->ops->storage),
                   state->table->flat_elements);
    if (!parts) fatal("--resume: %s", damage.text);
    return parts;
}

static void load_optimizer(const Checkpoint *checkpoint, const OptimizerPart *parts,
                           const TrainingState *state, void *chunk) {
    const StorageType type = accumulator_type(state->device->ops->storage);
    const int files = checkpoint->optimizer_files;
    for (int i = 0; i < files; i++) {
        if (!overlaps(&parts[i], state)) continue;
        Damage damage = {.directory = checkpoint->path};
        SafetensorsFile file;
        OptimizerPart part;
        if (!open_optimizer(&damage, i, files, type, state->table->flat_elements, &file, &part))
            fatal("--resume: %s", damage.text);
        load_part(&file, &part, state, chunk);
        safetensors_close(&file);
        free(part.ranges);
    }
}

// What no file holds, the padding that divides buckets evenly, is zero.
static void zero_state(const TrainingState *state) {
    Device *device = state->device;
    const StorageType storage = device->ops->storage;
    const int64_t kept =
        state->sharded ? state->table->elements / state->table->ranks : state->table->elements;
    const size_t bytes = (size_t)kept * storage_size(accumulator_type(storage));
    device->zero(device, state->weights, (size_t)state->table->elements * storage_size(storage));
    device->zero(device, state->master, bytes);
    device->zero(device, state->m, bytes);
    device->zero(device, state->v, bytes);
}

void checkpoint_load(const Checkpoint *checkpoint, const TrainingState *state) {
    // What does not fit this model is said by rank 0, while the others wait.
    if (state->communicator->rank > 0) communicator_barrier(state->communicator, "loading a checkpoint");
    SafetensorsFile model = open_model(checkpoint, state);
    OptimizerPart *parts = open_parts(checkpoint, state);
    if (state->communicator->rank == 0) communicator_barrier(state->communicator, "loading a checkpoint");
    void *chunk = host_allocate(CHUNK_BYTES, 1, "a chunk of a checkpoint");
    zero_state(state);
    load_model(&model, state, chunk);
    load_optimizer(checkpoint, parts, state, chunk);
    safetensors_close(&model);
    free_parts(parts, checkpoint->optimizer_files);
    free(chunk);
}

// --- verifying it all -----------------------------------------------------------------------------------

// Hugging Face's names of a model's shape, and how large they may be.
static const struct {
    const char *key;
    size_t offset; // in ModelConfig
    int64_t maximum;
} config_keys[] = {{"vocab_size", offsetof(ModelConfig, vocab_size), 1 << 30},
                   {"hidden_size", offsetof(ModelConfig, dim), 1 << 20},
                   {"num_hidden_layers", offsetof(ModelConfig, layers), 10000},
                   {"num_attention_heads", offsetof(ModelConfig, heads), 10000},
                   {"num_key_value_heads", offsetof(ModelConfig, kv_heads), 10000},
                   {"intermediate_size", offsetof(ModelConfig, ffn_dim), 1 << 24}};

static bool parse_config(Damage *damage, const cJSON *json, ModelConfig *config, StorageType *storage) {
    *config = (ModelConfig){0};
    for (size_t i = 0; i < COUNT_OF(config_keys); i++) {
        int64_t *value = (int64_t *)((char *)config + config_keys[i].offset);
        if (!json_integer(cJSON_GetObjectItemCaseSensitive(json, config_keys[i].key), value) || *value < 1 ||
            *value > config_keys[i].maximum)
            return damaged(damage, "%s has no %s from 1 to %ld", CONFIG_FILE, config_keys[i].key,
                           (long)config_keys[i].maximum);
    }
    if (config->dim % config->heads != 0 || config->heads % config->kv_heads != 0)
        return damaged(damage, "%s: %ld query heads and %ld key/value heads do not divide a width of %ld",
                       CONFIG_FILE, (long)config->heads, (long)config->kv_heads, (long)config->dim);
    const char *dtype = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "torch_dtype"));
    for (int type = STORAGE_FLOAT64; dtype && type <= STORAGE_BFLOAT16; type++) {
        *storage = (StorageType)type;
        if (!strcmp(dtype, storage_dtype(*storage))) return true;
    }
    return damaged(damage, "%s has no torch_dtype of float64, float32 or bfloat16", CONFIG_FILE);
}

static bool read_config(Damage *damage, ModelConfig *config, StorageType *storage) {
    char *text = file_read_text(path_below(damage->directory, CONFIG_FILE).text, MAX_JSON_BYTES, NULL);
    if (!text) return damaged(damage, "%s cannot be read: %s", CONFIG_FILE, strerror(errno));
    cJSON *json = cJSON_Parse(text);
    const bool good = parse_config(damage, json, config, storage);
    cJSON_Delete(json);
    free(text);
    return good;
}

static bool check_contents(Damage *damage, const Checkpoint *checkpoint, const ParameterTable *table,
                           StorageType storage) {
    SafetensorsFile file;
    if (!open_tensors(damage, MODEL_FILE, &file)) return false;
    const bool good = check_model(damage, &file, table, storage);
    safetensors_close(&file);
    if (!good) return false;
    OptimizerPart *parts =
        read_parts(damage, checkpoint->optimizer_files, accumulator_type(storage), table->flat_elements);
    if (parts) free_parts(parts, checkpoint->optimizer_files);
    return parts != NULL;
}

char *checkpoint_verify(const char *directory) {
    Checkpoint checkpoint = {0};
    Damage damage = {.directory = directory};
    ModelConfig config;
    StorageType storage = STORAGE_FLOAT32;
    if (!verify(&damage, directory, &checkpoint) || !read_config(&damage, &config, &storage))
        fatal("%s: not a good checkpoint: %s", directory, damage.text);
    ParameterTable table = parameter_table_create(&config, 1);
    if (!check_contents(&damage, &checkpoint, &table, storage))
        fatal("%s: not a good checkpoint: %s", directory, damage.text);
    char *line = format_string("%s: good, step %ld, %ld samples, %.1fM parameters in %s, %d optimizer file%s",
                               directory, (long)checkpoint.progress.step, (long)checkpoint.progress.samples,
                               1e-6 * (double)table.model_size, storage_dtype(storage),
                               checkpoint.optimizer_files, checkpoint.optimizer_files == 1 ? "" : "s");
    parameter_table_free(&table);
    checkpoint_close(&checkpoint);
    return line;
}
