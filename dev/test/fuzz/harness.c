#include "harness.h"

#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// --- fatal() comes back ---------------------------------------------------------------------------------
// The linker redirects all calls of exit, calloc, free, glob and globfree to the functions here (--wrap).

#define MOST_BLOCKS 100000

static jmp_buf *way_back;
static void *blocks[MOST_BLOCKS]; // memory allocated during `survives` and not yet freed
static int block_count;
static glob_t found; // the result of a glob that is not yet freed, if has_found
static bool has_found;

NORETURN void __real_exit(int code);
void *__real_calloc(size_t count, size_t size);
void __real_free(void *memory);
int __real_glob(const char *pattern, int flags, int (*on_error)(const char *, int), glob_t *result);
void __real_globfree(glob_t *result);

NORETURN void __wrap_exit(int code);
void *__wrap_calloc(size_t count, size_t size);
void __wrap_free(void *memory);
int __wrap_glob(const char *pattern, int flags, int (*on_error)(const char *, int), glob_t *result);
void __wrap_globfree(glob_t *result);

void __wrap_exit(int code) {
    if (way_back) longjmp(*way_back, 1);
    __real_exit(code);
}

void *__wrap_calloc(size_t count, size_t size) {
    void *memory = __real_calloc(count, size);
    if (way_back && memory) {
        if (block_count == MOST_BLOCKS) abort();
        blocks[block_count++] = memory;
    }
    return memory;
}

void __wrap_free(void *memory) {
    for (int i = block_count - 1; way_back && i >= 0; i--)
        if (blocks[i] == memory) {
            blocks[i] = blocks[--block_count];
            break;
        }
    __real_free(memory);
}

int __wrap_glob(const char *pattern, int flags, int (*on_error)(const char *, int), glob_t *result) {
    const int outcome = __real_glob(pattern, flags, on_error, result);
    has_found = outcome == 0;
    found = *result;
    return outcome;
}

void __wrap_globfree(glob_t *result) {
    has_found = false;
    __real_globfree(result);
}

void *tracked_allocate(size_t bytes) {
    return __wrap_calloc(bytes, 1);
}

void tracked_free(void *memory) {
    __wrap_free(memory);
}

bool survives(void (*action)(void *argument), void *argument) {
    static jmp_buf here;
    const int first_descriptor = dup(STDIN_FILENO); // descriptors that the action opens are at least this one
    close(first_descriptor);
    block_count = 0;
    way_back = &here;
    const bool came_back = setjmp(here) != 0;
    if (!came_back) action(argument);
    way_back = NULL;
    for (int i = 0; came_back && i < block_count; i++) __real_free(blocks[i]);
    if (came_back && has_found) __wrap_globfree(&found);
    for (int i = 0; came_back && i < 16; i++) close(first_descriptor + i);
    return !came_back;
}

// --- files ----------------------------------------------------------------------------------------------

static void write_all(int descriptor, const void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t put = pwrite(descriptor, (const char *)data + done, bytes - done, (off_t)done);
        if (put <= 0) abort();
        done += (size_t)put;
    }
    if (ftruncate(descriptor, (off_t)bytes) != 0) abort();
}

const char *memory_file(const void *data, size_t bytes) {
    static int descriptor = -1;
    static char path[64];
    if (descriptor < 0) {
        descriptor = memfd_create("fuzz", 0);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", descriptor);
    }
    write_all(descriptor, data, bytes);
    return path;
}

void replace_file(const char *path, const void *data, size_t bytes) {
    const int descriptor = open(path, O_WRONLY | O_CREAT, 0666);
    if (descriptor < 0) abort();
    write_all(descriptor, data, bytes);
    close(descriptor);
}

void seed_corpus(int argc, char **argv, const char *name, const void *data, size_t bytes) {
    int i = 1;
    struct stat status;
    while (i < argc && argv[i][0] == '-') i++;
    if (i == argc || stat(argv[i], &status) != 0 || !S_ISDIR(status.st_mode)) return;
    char *path = format_string("%s/%s", argv[i], name);
    replace_file(path, data, bytes);
    free(path);
}
