#include "base/reason.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

static void make_printable(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f) *text = '?';
}

bool fail(Reason *reason, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason->text, sizeof(reason->text), format, arguments);
    va_end(arguments);
    make_printable(reason->text);
    return false;
}

bool fail_errno(Reason *reason, const char *action, const char *path) {
    const int cause = errno;
    const int longest_path = REASON_SIZE - 256; // beyond it the cause would be cut off
    fail(reason, "cannot %s %.*s: %s", action, longest_path, path, strerror(cause));
    errno = cause;
    return false;
}
