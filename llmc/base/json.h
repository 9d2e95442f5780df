// Reading JSON that somebody else may have written.
#pragma once
#include "base/common.h"

#include <cjson/cJSON.h>

// Sets *value to the number `item` and returns true if it is a whole number from 0 to 2^53 (up to there JSON
// numbers are exact). Returns false for anything else, NULL included.
bool json_integer(const cJSON *item, int64_t *value);

// Adds a real number to an object, as text with a point or an exponent: readers that tell integers from reals take
// it for a real whatever its value.
void json_add_real(cJSON *object, const char *key, double value);

// `json` as text, which the caller frees. With `formatted` it has line breaks, indentation, and a line feed
// at its end.
char *json_text(const cJSON *json, bool formatted);
