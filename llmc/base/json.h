// Reading JSON that somebody else may have written.
#pragma once
#include "base/common.h"

#include <cjson/cJSON.h>

// The value of `item` if it is a whole number from 0 to 2^53 (what JSON's numbers hold exactly). False if it
// is anything else, or NULL.
bool json_integer(const cJSON *item, int64_t *value);

// `json` as text; `formatted` with line breaks and indentation, and a line feed at the end. The caller frees
// it.
char *json_text(const cJSON *json, bool formatted);
