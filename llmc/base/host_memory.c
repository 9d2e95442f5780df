#include "base/host_memory.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// --- files of /proc and of control groups ---------------------------------------------------------------

typedef struct {
    char text[PATH_MAX];
} FilePath;

static FilePath file_below(const char *directory, const char *name) {
    FilePath path;
    if (snprintf(path.text, sizeof(path.text), "%s/%s", directory, name) >= (int)sizeof(path.text))
        path.text[0] = 0; // cannot be opened
    return path;
}

// The number behind a word that begins a line, as in "MemTotal:  123 kB"; `missing` if there is no such line.
static size_t number_after(const char *path, const char *word, size_t missing) {
    FILE *file = fopen(path, "r");
    if (!file) return missing;
    char line[512];
    size_t number = missing;
    while (number == missing && fgets(line, sizeof(line), file)) {
        const size_t length = strlen(word);
        unsigned long long value;
        if (!strncmp(line, word, length) && sscanf(line + length, "%llu", &value) == 1)
            number = (size_t)value;
    }
    fclose(file);
    return number;
}

// The number that is a file's only text; SIZE_MAX for "max" and if there is none.
static size_t only_number(const char *directory, const char *name) {
    return number_after(file_below(directory, name).text, "", SIZE_MAX);
}

// --- control groups -------------------------------------------------------------------------------------

// What the two versions call their files, and the words of memory.stat for caches of files.
typedef struct {
    const char *limit, *soft_limit, *used,
        *caches[2]; // beyond the soft limit (NULL: none) processes are slowed down
} GroupFiles;

static const GroupFiles version_1 = {"memory.limit_in_bytes",
                                     NULL,
                                     "memory.usage_in_bytes",
                                     {"total_inactive_file ", "total_active_file "}},
                        version_2 = {"memory.max",
                                     "memory.high",
                                     "memory.current",
                                     {"inactive_file ", "active_file "}};

static void apply_group(HostMemory *memory, const char *directory, const GroupFiles *files) {
    size_t limit = only_number(directory, files->limit);
    if (files->soft_limit) limit = min_size(limit, only_number(directory, files->soft_limit));
    size_t used = only_number(directory, files->used);
    if (limit == SIZE_MAX || used == SIZE_MAX) return;
    const FilePath statistics = file_below(directory, "memory.stat");
    for (int i = 0; i < 2; i++) used -= min_size(used, number_after(statistics.text, files->caches[i], 0));
    memory->free_bytes = min_size(memory->free_bytes, limit - min_size(limit, used));
    memory->total_bytes = min_size(memory->total_bytes, limit);
}

// Whether a list as "cpu,memory" has the word.
static bool list_has(const char *list, const char *word) {
    const size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += length)
        if ((at == list || at[-1] == ',') && strchr(",: \n", at[length])) return true;
    return false;
}

// The path of this process's group in the hierarchy of version 2, or in that of version 1 which limits memory,
// by a line of /proc/self/cgroup: "0::/path" or "4:cpu,memory:/path". False: the process has none.
static bool group_path(const char *root, const GroupFiles *files, FilePath *path) {
    FILE *file = fopen(file_below(root, "proc/self/cgroup").text, "r");
    if (!file) return false;
    char line[PATH_MAX + 256];
    bool found = false;
    while (!found && fgets(line, sizeof(line), file)) {
        const char *list = strchr(line, ':'), *place = list ? strchr(list + 1, ':') : NULL;
        if (!place) continue;
        found = files == &version_2 ? place == list + 1 : list_has(list + 1, "memory");
        if (found) snprintf(path->text, sizeof(path->text), "%.*s", (int)strcspn(place + 1, "\n"), place + 1);
    }
    fclose(file);
    return found;
}

// Applies the group at `path` of the hierarchy and all above it, up to the hierarchy's mount. `top` is the group
// that is mounted there: in a container often not the hierarchy's root, and then nothing above it is seen.
static void apply_groups(HostMemory *memory, const char *mount, const char *top, const char *path,
                         const GroupFiles *files) {
    const size_t skipped = strcmp(top, "/") != 0 ? strlen(top) : 0;
    const bool below =
        !strncmp(path, top, skipped) && (path[skipped] == '/' || !path[skipped]) && !strstr(path, "/..");
    FilePath directory = file_below(mount, below ? path + skipped + strspn(path + skipped, "/") : "");
    for (size_t length = strlen(directory.text); length >= strlen(mount); directory.text[length] = 0) {
        apply_group(memory, directory.text, files);
        while (length > 0 && directory.text[--length] != '/') {
        }
    }
}

// A line of /proc/self/mountinfo: "35 31 0:32 /top /mount rw … - cgroup cgroup rw,memory".
static void apply_mount(HostMemory *memory, const char *root, const char *line) {
    char top[1024], mount[1024], type[32], options[1024];
    const char *second = strstr(line, " - ");
    if (!second || sscanf(line, "%*s %*s %*s %1023s %1023s", top, mount) != 2 ||
        sscanf(second, " - %31s %*s %1023s", type, options) != 2)
        return;
    const bool first_version = !strcmp(type, "cgroup") && list_has(options, "memory");
    if (!first_version && strcmp(type, "cgroup2") != 0) return;
    const GroupFiles *files = first_version ? &version_1 : &version_2;
    FilePath path;
    const FilePath at = file_below(root, mount + 1);
    if (group_path(root, files, &path)) apply_groups(memory, at.text, top, path.text, files);
}

static void apply_limits(HostMemory *memory, const char *root) {
    FILE *file = fopen(file_below(root, "proc/self/mountinfo").text, "r");
    if (!file) return;
    char line[4096];
    while (fgets(line, sizeof(line), file)) apply_mount(memory, root, line);
    fclose(file);
}

// --- what others ask ------------------------------------------------------------------------------------

// Left for what is not planned: the program itself, stacks, libraries, what is on its way to the disk, and what
// other processes take meanwhile.
static size_t margin(size_t total) {
    const size_t mebibyte = (size_t)1 << 20, part = total / 32;
    return part < 48 * mebibyte ? 48 * mebibyte : min_size(part, 1024 * mebibyte);
}

HostMemory host_memory(const char *root) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const FilePath information = file_below(root, "proc/meminfo");
    const size_t total = number_after(information.text, "MemTotal:", 0) * 1024;
    const size_t available = number_after(information.text, "MemAvailable:", 0) * 1024;
    HostMemory memory = {available ? available : (size_t)sysconf(_SC_AVPHYS_PAGES) * page,
                         total ? total : (size_t)sysconf(_SC_PHYS_PAGES) * page};
    apply_limits(&memory, root);
    memory.free_bytes -= min_size(memory.free_bytes, margin(memory.total_bytes));
    return memory;
}

size_t process_memory(const char *root) {
    FILE *file = fopen(file_below(root, "proc/self/statm").text, "r");
    if (!file) return 0;
    unsigned long long pages = 0;
    const bool found = fscanf(file, "%*s %llu", &pages) == 1;
    fclose(file);
    return found ? (size_t)pages * (size_t)sysconf(_SC_PAGESIZE) : 0;
}
