#include "checkpoint/trainer_file.h"

#include "base/version.h"
#include "checkpoint/json_file.h"

static const char step_key[] = "step", samples_key[] = "samples", skipped_key[] = "skipped",
                  guard_key[] = "guard", options_key[] = "options";

cJSON *trainer_file_create(const Progress *progress, const cJSON *options, const cJSON *guard) {
    cJSON *json = json_file_create_versioned();
    cJSON_AddStringToObject(json, "program", PROGRAM_NAME);
    cJSON_AddStringToObject(json, "version", PROGRAM_VERSION);
    cJSON_AddNumberToObject(json, step_key, (double)progress->step);
    cJSON_AddNumberToObject(json, samples_key, (double)progress->samples);
    cJSON_AddNumberToObject(json, skipped_key, (double)progress->skipped);
    cJSON_AddItemToObject(json, guard_key, cJSON_Duplicate(guard, true));
    cJSON_AddItemToObject(json, options_key, cJSON_Duplicate(options, true));
    return json;
}

static bool parse(const cJSON *json, Progress *progress, Reason *reason) {
    *progress = (Progress){0};
    if (!json_integer(cJSON_GetObjectItemCaseSensitive(json, step_key), &progress->step) ||
        !json_integer(cJSON_GetObjectItemCaseSensitive(json, samples_key), &progress->samples))
        return fail(reason, "%s does not say which step and sample it is at", TRAINER_FILE);
    if (!cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(json, options_key)))
        return fail(reason, "%s holds no options", TRAINER_FILE);
    const cJSON *skipped = cJSON_GetObjectItemCaseSensitive(json, skipped_key);
    return !skipped || json_integer(skipped, &progress->skipped) ||
           fail(reason, "%s does not say how many steps were skipped", TRAINER_FILE);
}

bool trainer_file_read(const char *directory, Progress *progress, cJSON **options, cJSON **guard,
                       Reason *reason) {
    cJSON *json = json_file_read_versioned(directory, TRAINER_FILE, NULL, NULL, reason);
    const bool good = json && parse(json, progress, reason);
    if (good) {
        *options = cJSON_DetachItemFromObjectCaseSensitive(json, options_key);
        *guard = cJSON_DetachItemFromObjectCaseSensitive(json, guard_key);
        if (!*guard) *guard = cJSON_CreateObject();
    }
    cJSON_Delete(json);
    return good;
}
