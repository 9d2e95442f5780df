#include "checkpoint/manifest.h"

#include "checkpoint/directory.h"
#include "checkpoint/json_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LARGE_BYTES ((int64_t)64 << 20) // from this total size on, files are hashed by several threads

static const char files_key[] = "files", name_key[] = "name", bytes_key[] = "bytes", hash_key[] = "xxh3_128";

Manifest manifest_create(int most) {
    return (Manifest){.list =
                          host_allocate((size_t)most, sizeof(ManifestEntry), "the manifest of a checkpoint")};
}

void manifest_free(Manifest *manifest) {
    free(manifest->list);
    *manifest = (Manifest){0};
}

// --- writing --------------------------------------------------------------------------------------------

char *manifest_text(const Manifest *manifest) {
    cJSON *json = json_file_create_versioned();
    cJSON *files = cJSON_AddArrayToObject(json, files_key);
    for (int i = 0; i < manifest->count; i++) {
        cJSON *entry = cJSON_CreateObject();
        cJSON_AddStringToObject(entry, name_key, manifest->list[i].name);
        cJSON_AddNumberToObject(entry, bytes_key, (double)manifest->list[i].bytes);
        cJSON_AddStringToObject(entry, hash_key, manifest->list[i].hash);
        cJSON_AddItemToArray(files, entry);
    }
    char *text = json_text(json, true);
    cJSON_Delete(json);
    return text;
}

bool manifest_write(const char *directory, const char *text, Reason *reason) {
    const Path path = path_below(directory, MANIFEST_FILE);
    FileWriter writer;
    if (!file_create(&writer, path.text)) return fail_errno(reason, "write", path.text);
    if (!file_append(&writer, text, strlen(text))) {
        file_abandon(&writer);
        return fail_errno(reason, "write", path.text);
    }
    return file_finish(&writer, NULL) || fail_errno(reason, "write", path.text);
}

// --- reading --------------------------------------------------------------------------------------------

static bool parse_entry(const cJSON *json, ManifestEntry *entry, Reason *reason) {
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(json, name_key);
    const cJSON *hash = cJSON_GetObjectItemCaseSensitive(json, hash_key);
    if (!cJSON_IsString(name) || !cJSON_IsString(hash) ||
        !json_integer(cJSON_GetObjectItemCaseSensitive(json, bytes_key), &entry->bytes))
        return fail(reason, "%s has an entry without %s, %s and %s", MANIFEST_FILE, name_key, bytes_key,
                    hash_key);
    if (strchr(name->valuestring, '/'))
        return fail(reason, "%s names \"%s\", which is not in this directory", MANIFEST_FILE,
                    name->valuestring);
    if (strlen(name->valuestring) >= sizeof(entry->name))
        return fail(reason, "%s names \"%.40s...\", which has more than %zu bytes", MANIFEST_FILE,
                    name->valuestring, sizeof(entry->name) - 1);
    if (strlen(hash->valuestring) >= sizeof(entry->hash))
        return fail(reason, "%s has a hash of more than %zu digits for %s", MANIFEST_FILE,
                    sizeof(entry->hash) - 1, name->valuestring);
    strcpy(entry->name, name->valuestring);
    strcpy(entry->hash, hash->valuestring);
    return true;
}

static bool parse_entries(Manifest *manifest, const cJSON *files, Reason *reason) {
    if (!cJSON_IsArray(files)) return fail(reason, "%s has no list of files", MANIFEST_FILE);
    *manifest = manifest_create(cJSON_GetArraySize(files));
    const cJSON *item;
    cJSON_ArrayForEach (item, files) {
        if (!parse_entry(item, &manifest->list[manifest->count++], reason)) return false;
    }
    return true;
}

static bool check_canonical(const cJSON *json, const char *text, size_t size, Reason *reason) {
    char *canonical = json_text(json, true);
    const bool same = strlen(canonical) == size && !memcmp(canonical, text, size);
    free(canonical);
    return same || fail(reason, "%s is not as it was written", MANIFEST_FILE);
}

bool manifest_read(Manifest *manifest, const char *directory, Reason *reason) {
    *manifest = (Manifest){0};
    char *text;
    size_t size;
    cJSON *json = json_file_read_versioned(directory, MANIFEST_FILE, &text, &size, reason);
    if (!json) return false;
    const bool good = check_canonical(json, text, size, reason) &&
                      parse_entries(manifest, cJSON_GetObjectItemCaseSensitive(json, files_key), reason);
    cJSON_Delete(json);
    free(text);
    if (!good) manifest_free(manifest);
    return good;
}

bool manifest_lists(const Manifest *manifest, const char *name, Reason *reason) {
    for (int i = 0; i < manifest->count; i++)
        if (!strcmp(manifest->list[i].name, name)) return true;
    return fail(reason, "%s lists no %s", MANIFEST_FILE, name);
}

static bool check_size(const ManifestEntry *entry, const char *directory, Reason *reason) {
    struct stat status;
    if (stat(path_below(directory, entry->name).text, &status) != 0)
        return fail(reason, "%s cannot be read: %s", entry->name, strerror(errno));
    return status.st_size == entry->bytes || fail(reason, "%s has %ld bytes, not the %ld it was written with",
                                                  entry->name, (long)status.st_size, (long)entry->bytes);
}

bool manifest_check_sizes(const Manifest *manifest, const char *directory, Reason *reason) {
    for (int i = 0; i < manifest->count; i++)
        if (!check_size(&manifest->list[i], directory, reason)) return false;
    return true;
}

static bool check_hash(const ManifestEntry *entry, const char *directory, Reason *reason) {
    char hash[FILE_HASH_SIZE];
    if (!file_hash(path_below(directory, entry->name).text, hash))
        return fail(reason, "%s cannot be read: %s", entry->name, strerror(errno));
    return !strcmp(hash, entry->hash) ||
           fail(reason, "%s has the hash %s, not the %s it was written with", entry->name, hash, entry->hash);
}

// One thread a file.
bool manifest_check_hashes(const Manifest *manifest, const char *directory, Reason *reason) {
    bool good = true;
    int64_t bytes = 0;
    for (int i = 0; i < manifest->count; i++) bytes += min_i64(manifest->list[i].bytes, LARGE_BYTES);
#pragma omp parallel for schedule(dynamic) if (bytes >= LARGE_BYTES)
    for (int i = 0; i < manifest->count; i++) {
        Reason found;
        if (check_hash(&manifest->list[i], directory, &found)) continue;
#pragma omp critical
        {
            *reason = found;
            good = false;
        }
    }
    return good;
}
