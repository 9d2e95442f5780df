// How much memory a process may take, by made-up /proc and /sys; the room on a disk.
#include "test.h"

#include "base/files.h"
#include "base/host_memory.h"

#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)

static void write_below(const char *root, const char *name, const char *text) {
    char *path = format_string("%s/%s", root, name), *end = strrchr(path, '/');
    *end = 0;
    if (!directory_make(path)) fatal("cannot make %s", path);
    *end = '/';
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0) fatal("cannot write %s", path);
    free(path);
}

// A control group: what it may use, and has used, in MiB, of which `cache` is a cache of files. limit 0: none.
typedef struct {
    const char *directory; // below /sys/fs/cgroup
    int version, limit, used, cache;
} TestGroup;

static void write_group(const char *root, const TestGroup *group) {
    const bool first = group->version == 1;
    const struct {
        const char *name;
        char *text;
    } files[] = {
        {first ? "memory.limit_in_bytes" : "memory.max",
         group->limit ? format_string("%zu\n", (size_t)group->limit * MIB)
                      : format_string(first ? "9223372036854771712\n" : "max\n")},
        {first ? "memory.usage_in_bytes" : "memory.current",
         format_string("%zu\n", (size_t)group->used * MIB)},
        {"memory.stat",
         format_string(first ? "cache 1\ninactive_file 7\ntotal_inactive_file %zu\ntotal_active_file %zu\n"
                             : "anon 5\ninactive_file %zu\nactive_file %zu\n",
                       (size_t)group->cache * MIB / 4, (size_t)group->cache * MIB / 4 * 3)}};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        char *name = format_string("sys/fs/cgroup/%s/%s", group->directory, files[i].name);
        write_below(root, name, files[i].text);
        free(name);
        free(files[i].text);
    }
}

static const char mount_2[] = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
static const char mount_1[] = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
                              "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
                              "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

// The machine has 4096 MiB, of which 3072 are free.
static const struct {
    const char *what, *groups, *mounts; // /proc/self/cgroup and /proc/self/mountinfo
    TestGroup group[3];
    int free, total; // MiB; free without the margin
} cases[] = {
    {"no control groups", "", "", {{0}}, 3072, 4096},
    {"version 2", "0::/job/step\n", mount_2, {{"job/step", 2, 1024, 600, 200}}, 624, 1024},
    {"a limit above",
     "0::/job/step\n",
     mount_2,
     {{"job/step", 2, 0, 100, 0}, {"job", 2, 640, 512, 0}},
     128,
     640},
    {"the tighter of two",
     "0::/job/step\n",
     mount_2,
     {{"job/step", 2, 512, 100, 0}, {"job", 2, 1024, 900, 100}},
     224,
     512},
    {"no limit", "0::/job\n", mount_2, {{"job", 2, 0, 100, 0}}, 3072, 4096},
    {"a limit beyond the machine", "0::/job\n", mount_2, {{"job", 2, 8192, 100, 0}}, 3072, 4096},
    {"full", "0::/job\n", mount_2, {{"job", 2, 512, 600, 0}}, 0, 512},
    {"version 1",
     "3:cpu:/x\n4:cpuset,memory:/job\n0::/\n",
     mount_1,
     {{"memory/job", 1, 1024, 600, 200}},
     624,
     1024},
    {"version 1, above",
     "4:memory:/a/b\n",
     mount_1,
     {{"memory/a/b", 1, 0, 9, 0}, {"memory/a", 1, 512, 12, 0}},
     500,
     512},
    {"version 1, none", "4:memory:/job\n", mount_1, {{"memory/job", 1, 0, 600, 200}}, 3072, 4096},
    {"a container whose group is mounted as the top",
     "4:memory:/docker/1234\n",
     "35 31 0:32 /docker/1234 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
     {{"memory", 1, 512, 12, 0}},
     500,
     512},
    {"a group whose name begins as that of the mounted top",
     "4:memory:/docker/12345/job\n",
     "35 31 0:32 /docker/123 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
     {{"memory/45/job", 1, 256, 12, 0}, {"memory", 1, 512, 12, 0}},
     500,
     512},
    {"a container that sees its host's paths",
     "4:memory:/docker/1234\n",
     "35 31 0:32 /other /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
     {{"memory", 1, 512, 12, 0}},
     500,
     512},
    {"a group outside of the namespace", "0::/../job\n", mount_2, {{"", 2, 512, 12, 0}}, 500, 512},
};

static void test_limits(void *unused) {
    (void)unused;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *root = test_directory();
        write_below(root, "proc/meminfo", "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 3145728 kB\n");
        write_below(root, "proc/self/cgroup", cases[i].groups);
        write_below(root, "proc/self/mountinfo", cases[i].mounts);
        for (size_t j = 0; j < COUNT_OF(cases[i].group) && cases[i].group[j].directory; j++)
            write_group(root, &cases[i].group[j]);
        const HostMemory memory = host_memory(root);
        const size_t expected = (size_t)cases[i].free * MIB, total = (size_t)cases[i].total * MIB;
        check(memory.total_bytes == total, "%s: %zu MiB in all", cases[i].what, memory.total_bytes / MIB);
        check(memory.free_bytes <= expected && memory.free_bytes + total / 10 >= expected &&
                  (memory.free_bytes < expected || expected == 0),
              "%s: %zu MiB free, not %d less a margin", cases[i].what, memory.free_bytes / MIB,
              cases[i].free);
    }
}

// Version 2 slows a process down beyond its soft limit.
static void test_soft_limit(void *unused) {
    (void)unused;
    const char *root = test_directory();
    const TestGroup group = {"job", 2, 1024, 100, 0};
    write_below(root, "proc/meminfo", "MemTotal: 4194304 kB\nMemAvailable: 3145728 kB\n");
    write_below(root, "proc/self/cgroup", "0::/job\n");
    write_below(root, "proc/self/mountinfo", mount_2);
    write_group(root, &group);
    write_below(root, "sys/fs/cgroup/job/memory.high", "536870912\n");
    check(host_memory(root).total_bytes == 512 * MIB, "the soft limit does not count");
}

static void test_process_memory(void *unused) {
    (void)unused;
    const size_t before = process_memory(""), bytes = 64 * MIB;
    char *memory = host_allocate(bytes, 1, "a test");
    for (size_t i = 0; i < bytes; i += 4096) ((volatile char *)memory)[i] = 1;
    const size_t after = process_memory("");
    check(before > 0 && after > before + bytes / 2 && after < before + 2 * bytes, "%zu MiB before, %zu after",
          before / MIB, after / MIB);
    free(memory);
}

static void test_disk_room(void *unused) {
    (void)unused;
    char *missing = format_string("%s/not/yet/there", test_directory());
    const int64_t here = disk_room("/"), below = disk_room(missing);
    check(here > 0 && below > 0, "%ld and %ld bytes", (long)here, (long)below);
    check(disk_room("not/there/either") > 0 && disk_room("neither") > 0 && disk_room("/nor_this") == here,
          "of paths that are not there the parent tells");
    check(disk_room("/proc/self/statm/x") < 0, "a file is no directory");
    free(missing);
}

void test_host_memory(void) {
    test_run("memory: limits of control groups", test_limits, NULL);
    test_run("memory: a soft limit", test_soft_limit, NULL);
    test_run("memory: of this process", test_process_memory, NULL);
    test_run("memory: room on the disk", test_disk_room, NULL);
}
