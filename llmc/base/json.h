// Reading JSON that somebody else may have written.
#pragma once
#include "base/common.h"

#include <cjson/cJSON.h>

// Sets *value to the number `item` and returns true if it is a whole number from 0 to 2^53 (up to there JSON
// numbers are exact). Returns false for anything else, NULL included.
bool json_integer(const cJSON *item, int64_t *value);

// `json` as text, which the caller frees. With `formatted` it has line breaks, indentation, and a line feed
// at its end.
char *json_text(const cJSON *json, bool formatted);
