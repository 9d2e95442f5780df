// The JSON files of a checkpoint. Those that only this program reads have a format_version.
#pragma once
#include "base/json.h"
#include "base/reason.h"

#define FORMAT_VERSION 1

// The object in directory/name, for the caller to delete; NULL if it cannot be read or holds no object.
cJSON *json_file_read(const char *directory, const char *name, Reason *reason);

// An object with this program's format_version, to be filled.
cJSON *json_file_create_versioned(void);

// The same as json_file_read; NULL too if it is of another version. If `text` is not NULL, the caller gets
// (and frees) the file's text, of *size bytes.
cJSON *json_file_read_versioned(const char *directory, const char *name, char **text, size_t *size,
                                Reason *reason);
