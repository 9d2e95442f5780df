// Reading the JSON files of a checkpoint. The files that only this program reads have a format_version.
#pragma once
#include "base/json.h"
#include "base/reason.h"

#define FORMAT_VERSION 1

// The object in the file directory/name; the caller deletes it. NULL, with the reason, if the file cannot be
// read or holds no object.
cJSON *json_file_read(const char *directory, const char *name, Reason *reason);

// A new object that has only this program's format_version; the caller adds the rest and deletes it.
cJSON *json_file_create_versioned(void);

// As json_file_read, but NULL too if the file has another format_version. If `text` is not NULL, *text
// becomes the file's text of *size bytes, which the caller frees.
cJSON *json_file_read_versioned(const char *directory, const char *name, char **text, size_t *size,
                                Reason *reason);
