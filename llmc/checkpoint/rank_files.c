#include "checkpoint/rank_files.h"

#include "checkpoint/directory.h"
#include "checkpoint/tensor_file.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// --- listing --------------------------------------------------------------------------------------------

// Returns the list with room for one more element; it may have moved.
static void *grow(void *list, int count, int *capacity, size_t element_bytes) {
    if (count < *capacity) return list;
    *capacity = 2 * *capacity + 16;
    list = realloc(list, (size_t)*capacity * element_bytes);
    if (!list) fatal("out of host memory: the list of a checkpoint's files");
    return list;
}

void rank_files_add(RankFiles *files, const char *name, char *text, size_t text_bytes) {
    assert(strlen(name) < FILE_NAME_SIZE);
    files->list = (RankFile *)grow(files->list, files->count, &files->capacity, sizeof(RankFile));
    RankFile *file = &files->list[files->count++];
    *file = (RankFile){.text = text, .text_bytes = text_bytes, .first_run = files->run_count};
    strcpy(file->name, name);
}

void rank_files_add_json(RankFiles *files, const char *name, cJSON *json) {
    char *text = json_text(json, true);
    rank_files_add(files, name, text, strlen(text));
    cJSON_Delete(json);
}

void rank_files_append(RankFiles *files, const void *memory, size_t bytes) {
    files->runs = (MemoryRun *)grow(files->runs, files->run_count, &files->run_capacity, sizeof(MemoryRun));
    files->runs[files->run_count++] = (MemoryRun){memory, bytes};
    files->list[files->count - 1].run_count++;
}

size_t rank_files_run_bytes(const RankFiles *files, const RankFile *file) {
    size_t bytes = 0;
    for (int i = 0; i < file->run_count; i++) bytes += files->runs[file->first_run + i].bytes;
    return bytes;
}

void rank_files_free(RankFiles *files) {
    for (int i = 0; i < files->count; i++) free(files->list[i].text);
    free(files->list);
    free(files->runs);
    *files = (RankFiles){0};
}

// --- writing --------------------------------------------------------------------------------------------

static size_t chunk_bytes(size_t bytes, size_t done) {
    return bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
}

static bool append_from_device(FileWriter *writer, const RankFiles *files, const RankFile *file,
                               Device *device, void *chunk) {
    for (int i = 0; i < file->run_count; i++) {
        const MemoryRun *run = &files->runs[file->first_run + i];
        for (size_t done = 0; done < run->bytes; done += CHUNK_BYTES) {
            const size_t part = chunk_bytes(run->bytes, done);
            device->download(device, chunk, (const char *)run->memory + done, part);
            if (!file_append(writer, chunk, part)) return false;
        }
    }
    return true;
}

// Writes in chunks, so that it stops soon when `cancelled` is set.
static bool append_from_copy(FileWriter *writer, const RankFiles *files, const RankFile *file,
                             const atomic_bool *cancelled) {
    const size_t bytes = rank_files_run_bytes(files, file);
    for (size_t done = 0; done < bytes; done += CHUNK_BYTES)
        if (*cancelled || !file_append(writer, file->copy + done, chunk_bytes(bytes, done))) return false;
    return true;
}

// Writes and syncs one file and fills in its manifest entry. False, with the reason in errno, if it fails or
// is cancelled.
static bool write_file(const RankFiles *files, const RankFile *file, const char *path, Device *device,
                       void *chunk, const atomic_bool *cancelled, ManifestEntry *entry) {
    FileWriter writer;
    if (!file_create(&writer, path)) return false;
    if (!file_append(&writer, file->text, file->text_bytes) ||
        !(files->copied ? append_from_copy(&writer, files, file, cancelled)
                        : append_from_device(&writer, files, file, device, chunk))) {
        file_abandon(&writer);
        return false;
    }
    strcpy(entry->name, file->name);
    entry->bytes = writer.bytes;
    return file_finish(&writer, entry->hash);
}

bool rank_files_write(const RankFiles *files, const char *directory, Device *device,
                      const atomic_bool *cancelled, Manifest *written, Reason *reason) {
    void *chunk = files->copied ? NULL : host_allocate(CHUNK_BYTES, 1, "a chunk of a checkpoint");
    bool good = true;
    for (int i = 0; good && i < files->count; i++) {
        const RankFile *file = &files->list[i];
        const Path path = path_below(directory, file->name);
        good = write_file(files, file, path.text, device, chunk, cancelled, &written->list[written->count]);
        if (good)
            written->count++;
        else if (!*cancelled)
            fail_errno(reason, "write", path.text);
    }
    free(chunk);
    return good;
}
