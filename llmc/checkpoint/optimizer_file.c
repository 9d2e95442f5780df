#include "checkpoint/optimizer_file.h"

#include "base/json.h"
#include "checkpoint/tensor_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NAME_WRITTEN "optimizer-%05d-of-%05d.safetensors" // rank, ranks
#define NAME_READ    "optimizer-%9d-of-%9d."

// Keys of the metadata: `first` and `count` list, as "3,17", the first element and the number of elements of
// each of the file's ranges; `total` is the number of elements of all files together.
static const char first_key[] = "first", count_key[] = "count", total_key[] = "total";

// --- writing --------------------------------------------------------------------------------------------

// The ranges of elements, numbered as in checkpoints, of this rank's parts of the buckets. Adjacent ranges
// are joined.
static OptimizerPart own_part(const TrainingState *state) {
    const ParameterTable *table = state->table;
    OptimizerPart own = {.ranges = host_allocate((size_t)table->bucket_count, sizeof(ElementRange),
                                                 "the ranges of a checkpoint")};
    for (int bucket = 0; bucket < table->bucket_count; bucket++) {
        const ElementRange part = bucket_part_flat(table, bucket, state->communicator->rank);
        if (part.count == 0) continue;
        own.elements += part.count;
        ElementRange *last = own.count > 0 ? &own.ranges[own.count - 1] : NULL;
        if (last && last->first + last->count == part.first)
            last->count += part.count;
        else
            own.ranges[own.count++] = part;
    }
    return own;
}

// The firsts, or the counts, of the part's ranges, as "3,17,8".
static char *list_text(const OptimizerPart *part, bool of_counts) {
    char *text = format_string("%s", "");
    for (int i = 0; i < part->count; i++) {
        const ElementRange range = part->ranges[i];
        char *longer =
            format_string("%s%s%ld", text, i > 0 ? "," : "", (long)(of_counts ? range.count : range.first));
        free(text);
        text = longer;
    }
    return text;
}

static char *make_header(const OptimizerPart *part, int64_t total, const StateBuffers *buffers,
                         StorageType type, size_t *size) {
    Tensor tensors[MOST_STATE_BUFFERS] = {0};
    for (int i = 0; i < buffers->count; i++) {
        tensors[i] = (Tensor){.type = type, .dims = 1, .shape = {part->elements}, .count = part->elements};
        strcpy(tensors[i].name, buffers->list[i].name);
    }
    char *first = list_text(part, false), *count = list_text(part, true),
         *total_text = format_string("%ld", (long)total);
    const char *const metadata[] = {PYTORCH_METADATA, first_key,  first, count_key, count,
                                    total_key,        total_text, NULL};
    char *header = safetensors_header(tensors, part->elements > 0 ? buffers->count : 0, metadata, size);
    free(total_text);
    free(count);
    free(first);
    return header;
}

static void file_name(char name[FILE_NAME_SIZE], int rank, int ranks) {
    snprintf(name, FILE_NAME_SIZE, NAME_WRITTEN, rank, ranks);
}

void optimizer_file_add(RankFiles *files, const TrainingState *state) {
    const ParameterTable *table = state->table;
    const Communicator *communicator = state->communicator;
    const StateBuffers *buffers = &state->optimizer;
    const StorageType type = accumulator_type(state->device->ops->storage);
    OptimizerPart own = own_part(state);
    size_t size;
    char *header = make_header(&own, table->flat_elements, buffers, type, &size), name[FILE_NAME_SIZE];
    file_name(name, communicator->rank, communicator->size);
    rank_files_add(files, name, header, size);
    for (int i = 0; i < buffers->count; i++)
        for (int bucket = 0; bucket < table->bucket_count; bucket++) {
            const ElementRange part = bucket_part_flat(table, bucket, communicator->rank);
            const size_t offset = (size_t)training_state_part(state, bucket) * storage_size(type);
            if (part.count > 0)
                rank_files_append(files, (const char *)buffers->list[i].memory + offset,
                                  (size_t)part.count * storage_size(type));
        }
    free(own.ranges);
}

// --- which files there are ------------------------------------------------------------------------------

bool optimizer_files_listed(const Manifest *manifest, int *ranks, Reason *reason) {
    *ranks = 0;
    for (int i = 0; i < manifest->count; i++) {
        int rank, of;
        if (sscanf(manifest->list[i].name, NAME_READ, &rank, &of) != 2 || of < 1) continue;
        if (*ranks != 0 && *ranks != of)
            return fail(reason, "%s lists optimizer files of %d and of %d ranks", MANIFEST_FILE, *ranks, of);
        *ranks = of;
    }
    if (*ranks == 0) return fail(reason, "%s lists no optimizer file", MANIFEST_FILE);
    for (int rank = 0; rank < *ranks; rank++) {
        char name[FILE_NAME_SIZE];
        file_name(name, rank, *ranks);
        if (!manifest_lists(manifest, name, reason)) return false;
    }
    return true;
}

// --- the metadata of a file -----------------------------------------------------------------------------

// Reads the number at *text and advances *text beyond it and the comma after it. False if there is no number.
static bool next_number(const char **text, int64_t *value) {
    char *end;
    errno = 0;
    *value = strtoll(*text, &end, 10);
    if (**text < '0' || **text > '9' || errno != 0 || (*end != ',' && *end != 0)) return false;
    *text = *end == ',' ? end + 1 : end;
    return *end == 0 || end[1] != 0;
}

static bool parse_ranges(OptimizerPart *part, const char *path, const char *first, const char *count,
                         int64_t total, Reason *reason) {
    size_t most = 1;
    for (const char *comma = first; (comma = strchr(comma, ',')); comma++) most++;
    part->ranges = host_allocate(most, sizeof(ElementRange), "the ranges of a file");
    while (*first && *count) {
        ElementRange *range = &part->ranges[part->count++];
        if (!next_number(&first, &range->first) || !next_number(&count, &range->count))
            return fail(reason, "the metadata of %s is not of whole numbers", path);
        if (range->first > total || range->count > total - range->first)
            return fail(reason, "%s has %ld elements from %ld on, beyond its total of %ld", path,
                        (long)range->count, (long)range->first, (long)total);
        part->elements += range->count;
        if (part->elements > total)
            return fail(reason, "%s has more than its total of %ld elements", path, (long)total);
    }
    return (!*first && !*count) ||
           fail(reason, "the metadata of %s has more of \"%s\" or of \"%s\"", path, first_key, count_key);
}

static bool parse_metadata(OptimizerPart *part, const char *path, const cJSON *metadata, int64_t elements,
                           Reason *reason) {
    const char *const keys[] = {first_key, count_key, total_key};
    const char *texts[COUNT_OF(keys)];
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        texts[i] = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metadata, keys[i]));
        if (!texts[i]) return fail(reason, "the metadata of %s has no \"%s\"", path, keys[i]);
    }
    int64_t total = 0;
    if (!next_number(&texts[2], &total) || *texts[2])
        return fail(reason, "the metadata of %s has no whole number \"%s\"", path, total_key);
    if (total != elements)
        return fail(reason, "%s is of %ld elements, this model has %ld", path, (long)total, (long)elements);
    return parse_ranges(part, path, texts[0], texts[1], total, reason);
}

static bool read_metadata(OptimizerPart *part, const SafetensorsFile *file, int64_t elements,
                          Reason *reason) {
    cJSON *metadata = file->metadata ? cJSON_Parse(file->metadata) : NULL;
    const bool good = parse_metadata(part, file->path, metadata, elements, reason);
    cJSON_Delete(metadata);
    return good;
}

// The buffers' names, as "master, m and v".
static void names_text(char *text, size_t size, const StateBuffers *buffers) {
    size_t length = 0;
    for (int i = 0; i < buffers->count && length < size; i++) {
        const char *between = i == 0 ? "" : i + 1 == buffers->count ? " and " : ", ";
        length += (size_t)snprintf(text + length, size - length, "%s%s", between, buffers->list[i].name);
    }
}

static bool check_buffers(const SafetensorsFile *file, const OptimizerPart *part, const StateBuffers *buffers,
                          StorageType type, Reason *reason) {
    const int needed = part->elements > 0 ? buffers->count : 0;
    char names[256] = "0";
    if (needed > 0) names_text(names, sizeof(names), buffers);
    if (file->count != needed)
        return fail(reason, "%s has %d tensors, not %s", file->path, file->count, names);
    for (int i = 0; i < needed; i++)
        if (!tensor_file_check(file, buffers->list[i].name, type, 1, &part->elements, reason)) return false;
    return true;
}

// Opens file `index` of `files` and reads which elements it holds. The caller frees part->ranges, also after
// a failure.
static bool open_file(SafetensorsFile *file, OptimizerPart *part, const OptimizerFiles *files, int index,
                      const StateBuffers *buffers, StorageType type, int64_t elements, Reason *reason) {
    char name[FILE_NAME_SIZE];
    file_name(name, index, files->count);
    *part = (OptimizerPart){0};
    if (!tensor_file_open(file, files->directory, name, reason)) return false;
    if (read_metadata(part, file, elements, reason) && check_buffers(file, part, buffers, type, reason))
        return true;
    safetensors_close(file);
    return false;
}

// --- all files together ---------------------------------------------------------------------------------

static int compare_ranges(const void *a, const void *b) {
    const int64_t first = ((const ElementRange *)a)->first, second = ((const ElementRange *)b)->first;
    return (first > second) - (first < second);
}

// Whether the sorted ranges hold every element once.
static bool check_ranges(const ElementRange *ranges, int count, const char *directory, int64_t elements,
                         Reason *reason) {
    int64_t covered = 0;
    for (int i = 0; i < count; i++) {
        if (ranges[i].first != covered)
            return fail(reason,
                        "the optimizer files in %s do not fit together: one begins at element %ld, not %ld",
                        directory, (long)ranges[i].first, (long)covered);
        covered += ranges[i].count;
    }
    return covered == elements || fail(reason, "the optimizer files in %s end at element %ld of %ld",
                                       directory, (long)covered, (long)elements);
}

static bool check_cover(const OptimizerFiles *files, int64_t elements, Reason *reason) {
    int count = 0;
    for (int i = 0; i < files->count; i++) count += files->parts[i].count;
    ElementRange *ranges = host_allocate((size_t)count, sizeof(ElementRange), "the ranges of a checkpoint");
    count = 0;
    for (int i = 0; i < files->count; i++)
        for (int j = 0; j < files->parts[i].count; j++)
            if (files->parts[i].ranges[j].count > 0) ranges[count++] = files->parts[i].ranges[j];
    qsort(ranges, (size_t)count, sizeof(ElementRange), compare_ranges);
    const bool good = check_ranges(ranges, count, files->directory, elements, reason);
    free(ranges);
    return good;
}

bool optimizer_files_open(OptimizerFiles *files, const char *directory, int count,
                          const StateBuffers *buffers, StorageType type, int64_t elements, Reason *reason) {
    *files = (OptimizerFiles){.directory = directory, .count = count};
    files->parts = host_allocate((size_t)count, sizeof(OptimizerPart), "the optimizer files");
    bool good = true;
    for (int i = 0; good && i < count; i++) {
        SafetensorsFile file;
        good = open_file(&file, &files->parts[i], files, i, buffers, type, elements, reason);
        if (good) safetensors_close(&file);
    }
    if (good && check_cover(files, elements, reason)) return true;
    optimizer_files_close(files);
    return false;
}

void optimizer_files_close(OptimizerFiles *files) {
    for (int i = 0; i < files->count; i++) free(files->parts[i].ranges);
    free(files->parts);
    *files = (OptimizerFiles){0};
}

// --- loading --------------------------------------------------------------------------------------------

static ElementRange overlap(ElementRange a, ElementRange b) {
    const int64_t first = max_i64(a.first, b.first), end = min_i64(a.first + a.count, b.first + b.count);
    return (ElementRange){first, max_i64(end - first, 0)};
}

static bool overlaps(const OptimizerPart *part, const TrainingState *state) {
    for (int i = 0; i < part->count; i++)
        for (int bucket = 0; bucket < state->table->bucket_count; bucket++)
            if (overlap(part->ranges[i], training_state_held(state, bucket).range).count > 0) return true;
    return false;
}

// Loads the elements that are both in `held` and in the file's `range`, whose first element is element
// `place` of the file's tensors.
static bool load_overlap(const SafetensorsFile *file, ElementRange range, int64_t place, HeldRange held,
                         const TrainingState *state, Reason *reason) {
    const ElementRange common = overlap(range, held.range);
    const size_t size = storage_size(accumulator_type(state->device->ops->storage));
    const size_t offset = (size_t)(place + common.first - range.first) * size;
    bool good = true;
    for (int i = 0; good && common.count > 0 && i < state->optimizer.count; i++) {
        const StateBuffer *buffer = &state->optimizer.list[i];
        char *memory = (char *)buffer->memory + (size_t)(held.begin + common.first - held.range.first) * size;
        good = tensor_file_load(file, buffer->name, offset, (size_t)common.count * size, state->device,
                                memory, reason);
    }
    return good;
}

static bool load_part(const SafetensorsFile *file, const OptimizerPart *part, const TrainingState *state,
                      Reason *reason) {
    int64_t place = 0;
    for (int i = 0; i < part->count; i++) {
        for (int bucket = 0; bucket < state->table->bucket_count; bucket++)
            if (!load_overlap(file, part->ranges[i], place, training_state_held(state, bucket), state,
                              reason))
                return false;
        place += part->ranges[i].count;
    }
    return true;
}

bool optimizer_files_load(const OptimizerFiles *files, const TrainingState *state, Reason *reason) {
    const StorageType type = accumulator_type(state->device->ops->storage);
    bool good = true;
    for (int i = 0; good && i < files->count; i++) {
        if (!overlaps(&files->parts[i], state)) continue;
        SafetensorsFile file;
        OptimizerPart part;
        good =
            open_file(&file, &part, files, i, &state->optimizer, type, state->table->flat_elements, reason);
        if (good) {
            good = load_part(&file, &part, state, reason);
            safetensors_close(&file);
        }
        free(part.ranges);
    }
    return good;
}
