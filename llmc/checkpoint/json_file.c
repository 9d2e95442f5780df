#include "checkpoint/json_file.h"

#include "base/files.h"
#include "checkpoint/directory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_JSON_BYTES ((size_t)64 << 20)

static const char version_key[] = "format_version";

static cJSON *read_object(const char *directory, const char *name, char **text, size_t *size,
                          Reason *reason) {
    *text = file_read_text(path_below(directory, name).text, MAX_JSON_BYTES, size);
    if (!*text) {
        fail(reason, "%s cannot be read: %s", name, strerror(errno));
        return NULL;
    }
    cJSON *json = cJSON_Parse(*text);
    if (cJSON_IsObject(json)) return json;
    fail(reason, "%s is not a JSON object", name);
    cJSON_Delete(json);
    free(*text);
    return NULL;
}

cJSON *json_file_read(const char *directory, const char *name, Reason *reason) {
    char *text;
    cJSON *json = read_object(directory, name, &text, NULL, reason);
    if (json) free(text);
    return json;
}

cJSON *json_file_create_versioned(void) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, version_key, FORMAT_VERSION);
    return json;
}

static bool check_version(const cJSON *json, const char *name, Reason *reason) {
    int64_t version;
    if (!json_integer(cJSON_GetObjectItemCaseSensitive(json, version_key), &version))
        return fail(reason, "%s has no %s", name, version_key);
    return version == FORMAT_VERSION ||
           fail(reason, "%s has format version %ld; this program reads version %d", name, (long)version,
                FORMAT_VERSION);
}

cJSON *json_file_read_versioned(const char *directory, const char *name, char **text, size_t *size,
                                Reason *reason) {
    char *own;
    cJSON *json = read_object(directory, name, &own, size, reason);
    if (!json) return NULL;
    const bool good = check_version(json, name, reason);
    if (good && text)
        *text = own;
    else
        free(own);
    if (good) return json;
    cJSON_Delete(json);
    return NULL;
}
