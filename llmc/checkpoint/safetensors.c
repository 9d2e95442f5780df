#include "checkpoint/safetensors.h"

#include "base/files.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH_BYTES     8
#define MAX_HEADER_BYTES 100000000 // the limit of the reference implementation (huggingface/safetensors)

// --- one tensor's entry of the header -------------------------------------------------------------------

static bool parse_type(Tensor *tensor, const cJSON *dtype, Reason *reason) {
    if (!cJSON_IsString(dtype)) return fail(reason, "%s: its dtype is not a string", tensor->name);
    const StorageType types[] = {STORAGE_FLOAT64, STORAGE_FLOAT32, STORAGE_BFLOAT16};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        tensor->type = types[i];
        if (!strcmp(storage_name(types[i]), dtype->valuestring)) return true;
    }
    return fail(reason, "%s: its dtype \"%.20s\" is none of F64, F32, BF16", tensor->name,
                dtype->valuestring);
}

static bool parse_shape(Tensor *tensor, const cJSON *shape, Reason *reason) {
    if (!cJSON_IsArray(shape)) return fail(reason, "%s: its shape is not a list", tensor->name);
    tensor->dims = cJSON_GetArraySize(shape);
    if (tensor->dims < 1 || tensor->dims > 2)
        return fail(reason, "%s: it has %d dimensions, not 1 or 2", tensor->name, tensor->dims);
    tensor->count = 1;
    int axis = 0;
    const cJSON *item;
    cJSON_ArrayForEach (item, shape) {
        int64_t *length = &tensor->shape[axis++];
        if (!json_integer(item, length) || *length == 0)
            return fail(reason, "%s: its shape is not of whole numbers above zero", tensor->name);
        if (__builtin_mul_overflow(tensor->count, *length, &tensor->count))
            return fail(reason, "%s: its shape overflows 64 bits", tensor->name);
    }
    if (__builtin_mul_overflow((size_t)tensor->count, storage_size(tensor->type), &tensor->bytes))
        return fail(reason, "%s: its size overflows 64 bits", tensor->name);
    return true;
}

static bool parse_offsets(Tensor *tensor, const cJSON *offsets, size_t data_bytes, Reason *reason) {
    int64_t begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !json_integer(cJSON_GetArrayItem(offsets, 0), &begin) ||
        !json_integer(cJSON_GetArrayItem(offsets, 1), &end))
        return fail(reason, "%s: its data_offsets are not two whole numbers", tensor->name);
    if (begin > end)
        return fail(reason, "%s: its data begins at %ld and ends before, at %ld", tensor->name, (long)begin,
                    (long)end);
    if ((size_t)end > data_bytes)
        return fail(reason, "%s: its data ends at %ld, but the file has %zu bytes of data", tensor->name,
                    (long)end, data_bytes);
    if ((size_t)(end - begin) != tensor->bytes)
        return fail(reason, "%s: it has %ld bytes of data, but its type and shape make %zu", tensor->name,
                    (long)(end - begin), tensor->bytes);
    tensor->offset = (size_t)begin;
    return true;
}

static bool parse_tensor(Tensor *tensor, const cJSON *entry, size_t data_bytes, Reason *reason) {
    if (strlen(entry->string) >= sizeof(tensor->name))
        return fail(reason, "the tensor name \"%.40s...\" has more than %zu bytes", entry->string,
                    sizeof(tensor->name) - 1);
    strcpy(tensor->name, entry->string);
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    if (!cJSON_IsObject(entry) || cJSON_GetArraySize(entry) != 3 || !dtype || !shape || !offsets)
        return fail(reason, "%s: it does not have dtype, shape and data_offsets, once each and nothing else",
                    tensor->name);
    return parse_type(tensor, dtype, reason) && parse_shape(tensor, shape, reason) &&
           parse_offsets(tensor, offsets, data_bytes, reason);
}

// --- the header as a whole ------------------------------------------------------------------------------

static int compare_names(const void *a, const void *b) {
    return strcmp(((const Tensor *)a)->name, ((const Tensor *)b)->name);
}

static int compare_offsets(const void *a, const void *b) {
    const size_t first = ((const Tensor *)a)->offset, second = ((const Tensor *)b)->offset;
    return (first > second) - (first < second);
}

static bool check_names(Tensor *tensors, int count, Reason *reason) {
    qsort(tensors, (size_t)count, sizeof(Tensor), compare_names);
    for (int i = 1; i < count; i++)
        if (!strcmp(tensors[i].name, tensors[i - 1].name))
            return fail(reason, "%s: the name stands there twice", tensors[i].name);
    return true;
}

// Whether every byte of the data part belongs to exactly one tensor. Sorts the tensors by offset.
static bool check_cover(Tensor *tensors, int count, size_t data_bytes, Reason *reason) {
    qsort(tensors, (size_t)count, sizeof(Tensor), compare_offsets);
    size_t covered = 0;
    for (int i = 0; i < count; i++) {
        if (tensors[i].offset < covered)
            return fail(reason, "%s: its data overlaps that of %s", tensors[i].name, tensors[i - 1].name);
        if (tensors[i].offset > covered)
            return fail(reason, "%s: the %zu bytes of data before it belong to no tensor", tensors[i].name,
                        tensors[i].offset - covered);
        covered += tensors[i].bytes;
    }
    if (covered != data_bytes)
        return fail(reason, "the last %zu bytes of data belong to no tensor", data_bytes - covered);
    return true;
}

static bool parse_metadata(SafetensorsFile *file, const cJSON *metadata, Reason *reason) {
    if (file->metadata) return fail(reason, "__metadata__ stands there twice");
    if (!cJSON_IsObject(metadata)) return fail(reason, "__metadata__ is not an object of strings");
    const cJSON *item;
    cJSON_ArrayForEach (item, metadata)
        if (!cJSON_IsString(item)) return fail(reason, "__metadata__ is not an object of strings");
    file->metadata = json_text(metadata, false);
    return true;
}

static bool parse_header(SafetensorsFile *file, const cJSON *header, size_t data_bytes, Reason *reason) {
    if (!cJSON_IsObject(header)) return fail(reason, "its header is not a JSON object");
    file->tensors =
        host_allocate((size_t)cJSON_GetArraySize(header), sizeof(Tensor), "the tensors of a file");
    const cJSON *entry;
    cJSON_ArrayForEach (entry, header) {
        if (!strcmp(entry->string, "__metadata__")) {
            if (!parse_metadata(file, entry, reason)) return false;
        } else if (!parse_tensor(&file->tensors[file->count++], entry, data_bytes, reason)) {
            return false;
        }
    }
    return check_names(file->tensors, file->count, reason) &&
           check_cover(file->tensors, file->count, data_bytes, reason);
}

// Parses the header's JSON. NULL if it is not valid JSON followed by nothing but spaces.
static cJSON *parse_json(const char *text, size_t length) {
    const char *end = text;
    cJSON *json = text[0] == '{' ? cJSON_ParseWithLengthOpts(text, length, &end, false) : NULL;
    while (end < text + length && *end == ' ') end++;
    if (end == text + length) return json;
    cJSON_Delete(json);
    return NULL;
}

static bool read_header(SafetensorsFile *file, Reason *reason) {
    struct stat status;
    if (fstat(file->descriptor, &status) != 0) return fail(reason, "cannot be read: %s", strerror(errno));
    if (!S_ISREG(status.st_mode)) return fail(reason, "is not a file");
    unsigned char length_bytes[LENGTH_BYTES];
    int64_t got = file_read(file->descriptor, length_bytes, LENGTH_BYTES, 0);
    if (got < 0) return fail(reason, "cannot be read: %s", strerror(errno));
    if (got < LENGTH_BYTES)
        return fail(reason, "has %ld bytes, fewer than the %d of a header's length", (long)status.st_size,
                    LENGTH_BYTES);
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | length_bytes[i];
    if (length < 2 || length > MAX_HEADER_BYTES)
        return fail(reason, "its header's length of %llu bytes is not from 2 to %d",
                    (unsigned long long)length, MAX_HEADER_BYTES);
    if (length > (uint64_t)status.st_size - LENGTH_BYTES)
        return fail(reason, "its header's length of %llu bytes is more than the file of %ld has",
                    (unsigned long long)length, (long)status.st_size);
    file->data_start = LENGTH_BYTES + (size_t)length;
    char *text = host_allocate((size_t)length + 1, 1, "the header of a safetensors file");
    got = file_read(file->descriptor, text, (size_t)length, LENGTH_BYTES);
    const int cause = errno;
    cJSON *header = got == (int64_t)length ? parse_json(text, (size_t)length) : NULL;
    const bool good = header ? parse_header(file, header, (size_t)status.st_size - file->data_start, reason)
                      : got < 0 ? fail(reason, "cannot be read: %s", strerror(cause))
                                : fail(reason, "its header is not a JSON object");
    cJSON_Delete(header);
    free(text);
    return good;
}

bool safetensors_open(SafetensorsFile *file, const char *path, Reason *reason) {
    *file = (SafetensorsFile){.path = format_string("%s", path)};
    file->descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (file->descriptor < 0) fail(reason, "cannot be opened: %s", strerror(errno));
    if (file->descriptor >= 0 && read_header(file, reason)) return true;
    safetensors_close(file);
    return false;
}

void safetensors_close(SafetensorsFile *file) {
    if (file->descriptor >= 0) close(file->descriptor);
    free(file->path);
    free(file->tensors);
    free(file->metadata);
    *file = (SafetensorsFile){.descriptor = -1};
}

const Tensor *safetensors_find(const SafetensorsFile *file, const char *name) {
    for (int i = 0; i < file->count; i++)
        if (!strcmp(file->tensors[i].name, name)) return &file->tensors[i];
    return NULL;
}

bool safetensors_read(const SafetensorsFile *file, const Tensor *tensor, size_t offset, void *out,
                      size_t bytes) {
    if (offset > tensor->bytes || bytes > tensor->bytes - offset) return false;
    const size_t start = file->data_start + tensor->offset + offset;
    return file_read(file->descriptor, out, bytes, (int64_t)start) == (int64_t)bytes;
}

// --- writing --------------------------------------------------------------------------------------------

static void add_entry(cJSON *header, const Tensor *tensor) {
    cJSON *entry = cJSON_AddObjectToObject(header, tensor->name);
    cJSON_AddStringToObject(entry, "dtype", storage_name(tensor->type));
    cJSON *shape = cJSON_AddArrayToObject(entry, "shape");
    for (int axis = 0; axis < tensor->dims; axis++)
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)tensor->shape[axis]));
    cJSON *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)tensor->offset));
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)(tensor->offset + tensor->bytes)));
}

char *safetensors_header(Tensor *tensors, int count, const char *const *metadata, size_t *size) {
    cJSON *header = cJSON_CreateObject();
    if (metadata) {
        cJSON *pairs = cJSON_AddObjectToObject(header, "__metadata__");
        for (; metadata[0]; metadata += 2) cJSON_AddStringToObject(pairs, metadata[0], metadata[1]);
    }
    size_t offset = 0;
    for (int i = 0; i < count; i++) {
        tensors[i].offset = offset;
        tensors[i].bytes = (size_t)tensors[i].count * storage_size(tensors[i].type);
        offset += tensors[i].bytes;
        add_entry(header, &tensors[i]);
    }
    char *json = json_text(header, false);
    cJSON_Delete(header);
    const size_t written = strlen(json), padded = (written + 7) / 8 * 8;
    char *start = host_allocate(LENGTH_BYTES + padded, 1, "the header of a safetensors file");
    for (int i = 0; i < LENGTH_BYTES; i++) start[i] = (char)((uint64_t)padded >> (8 * i) & 0xff);
    memcpy(start + LENGTH_BYTES, json, written);
    memset(start + LENGTH_BYTES + written, ' ', padded - written);
    free(json);
    *size = LENGTH_BYTES + padded;
    return start;
}
