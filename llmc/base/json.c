#include "base/json.h"

#include <stdlib.h>

bool json_integer(const cJSON *item, int64_t *value) {
    if (!cJSON_IsNumber(item)) return false;
    double number = item->valuedouble;
    if (!(number >= 0 && number <= 0x1p53) || number != (double)(int64_t)number) return false;
    *value = (int64_t)number;
    return true;
}

char *json_text(const cJSON *json, bool formatted) {
    char *printed = formatted ? cJSON_Print(json) : cJSON_PrintUnformatted(json);
    if (!printed) fatal("out of host memory: a JSON text");
    char *text = format_string(formatted ? "%s\n" : "%s", printed);
    cJSON_free(printed);
    return text;
}
