#include "base/json.h"

#include <stdlib.h>
#include <string.h>

bool json_integer(const cJSON *item, int64_t *value) {
    if (!cJSON_IsNumber(item)) return false;
    double number = item->valuedouble;
    if (!(number >= 0 && number <= 0x1p53) || number != (double)(int64_t)number) return false;
    *value = (int64_t)number;
    return true;
}

void json_add_real(cJSON *object, const char *key, double value) {
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text) - 2, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    if (!strpbrk(text, ".e")) strcat(text, ".0");
    cJSON_AddRawToObject(object, key, text);
}

char *json_text(const cJSON *json, bool formatted) {
    char *printed = formatted ? cJSON_Print(json) : cJSON_PrintUnformatted(json);
    if (!printed) fatal("out of host memory: a JSON text");
    char *text = format_string(formatted ? "%s\n" : "%s", printed);
    cJSON_free(printed);
    return text;
}
