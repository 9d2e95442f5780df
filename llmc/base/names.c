#include "base/names.h"

#include "base/common.h"

#include <stdlib.h>
#include <string.h>

int name_index(const char *const *names, const char *name) {
    for (int i = 0; names[i]; i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

char *names_joined(const char *const *names) {
    char *joined = format_string("%s", names[0]);
    for (int i = 1; names[i]; i++) {
        char *longer = format_string("%s|%s", joined, names[i]);
        free(joined);
        joined = longer;
    }
    return joined;
}
