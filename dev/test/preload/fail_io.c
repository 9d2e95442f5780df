// Simulates a failing disk: preloaded into a program (LD_PRELOAD), it counts the calls that change, or sync,
// files below a directory, and makes some of them fail.
//
//   FAIL_IO_BELOW=DIR    the directory, as an absolute path
//   FAIL_IO_CALL=N       the first call that fails, from 1
//   FAIL_IO_KIND=KIND    how they fail: with ENOSPC, EIO or EROFS;
//                        "short": write writes half of its bytes and returns that number;
//                        "full": the same once, then all calls that need space fail with ENOSPC;
//                        "kill": the process is killed; "read": reads are counted instead, and fail with EIO;
//                        "hang": reads are counted, and one makes a file named hanging and does not return;
//                        "slow": reads are counted, and take SLOW_SECONDS
//   FAIL_IO_FOR=COUNT    the number of calls that fail (1); 0: all from the first failing one on
//   FAIL_IO_RANK=RANK    only calls of this rank fail
//   FAIL_IO_ROOM=BYTES   so many are free on every disk
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SLOW_SECONDS 5

typedef enum { WRITES, NEEDS_SPACE, FREES_SPACE, READS } CallKind;

static atomic_long calls;

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static bool is_below(const char *path) {
    const char *directory = getenv("FAIL_IO_BELOW");
    char absolute[2 * PATH_MAX], here[PATH_MAX];
    const char *rank = getenv("FAIL_IO_RANK"), *own_rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!directory || (rank && (!own_rank || strcmp(rank, own_rank)))) return false;
    if (path[0] != '/' && !getcwd(here, sizeof(here))) return false;
    snprintf(absolute, sizeof(absolute), "%s%s%s", path[0] == '/' ? "" : here, path[0] == '/' ? "" : "/",
             path);
    const size_t length = strlen(directory);
    return !strncmp(absolute, directory, length) && (absolute[length] == '/' || absolute[length] == 0);
}

static bool descriptor_is_below(int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
    const ssize_t length = readlink(link, path, sizeof(path) - 1);
    if (length < 0) return false;
    path[length] = 0;
    return is_below(path);
}

// Counts a call and returns whether it fails. If so errno is set; 0 means that half of a write is done.
static bool fails(CallKind kind) {
    const long first = setting("FAIL_IO_CALL", LONG_MAX), count = setting("FAIL_IO_FOR", 1);
    const char *how = getenv("FAIL_IO_KIND");
    if (!how) return false;
    const bool hangs = !strcmp(how, "hang"), slow = !strcmp(how, "slow");
    if ((kind == READS) != (hangs || slow || !strcmp(how, "read"))) return false;
    const long call = atomic_fetch_add(&calls, 1) + 1;
    if (call < first) return false;
    if (!strcmp(how, "kill")) kill(getpid(), SIGKILL);
    if (slow && count > 0 && call >= first + count) return false;
    if (hangs) mkfifo("hanging", 0600);
    while (hangs) pause();
    if (slow) sleep(SLOW_SECONDS);
    if (slow) return false;
    const bool full = !strcmp(how, "full"), half = full || !strcmp(how, "short");
    if (full && call > first && kind == FREES_SPACE) return false;
    if (!full && count > 0 && call >= first + count) return false;
    if (half && kind != WRITES && !(full && call > first)) return false;
    const bool partly = !strcmp(how, "short") || (full && call == first);
    errno = partly ? 0 : !strcmp(how, "EROFS") ? EROFS : full || !strcmp(how, "ENOSPC") ? ENOSPC : EIO;
    return true;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *data, size_t bytes) {
    if (descriptor_is_below(descriptor) && fails(WRITES)) {
        if (errno != 0) return -1;
        bytes = (bytes + 1) / 2;
    }
    return REAL(write)(descriptor, data, bytes);
}

ssize_t pread(int descriptor, void *out, size_t bytes, off_t offset) {
    return descriptor_is_below(descriptor) && fails(READS) ? -1 : REAL(pread)(descriptor, out, bytes, offset);
}

int fflush(FILE *file) {
    if (file && descriptor_is_below(fileno(file)) && fails(NEEDS_SPACE)) return EOF;
    return REAL(fflush)(file);
}

int fsync(int descriptor) {
    return descriptor_is_below(descriptor) && fails(NEEDS_SPACE) ? -1 : REAL(fsync)(descriptor);
}

int close(int descriptor) {
    const int flags = fcntl(descriptor, F_GETFL);
    const bool writes = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
    if (!writes || !descriptor_is_below(descriptor) || !fails(NEEDS_SPACE)) return REAL(close)(descriptor);
    const int cause = errno;
    REAL(close)(descriptor);
    errno = cause;
    return -1;
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if ((flags & O_ACCMODE) != O_RDONLY && is_below(path) && fails(NEEDS_SPACE)) return -1;
    return REAL(open)(path, flags, mode);
}

int statvfs(const char *path, struct statvfs *status) {
    const int outcome = REAL(statvfs)(path, status);
    if (outcome == 0 && getenv("FAIL_IO_ROOM"))
        status->f_bavail = (fsblkcnt_t)setting("FAIL_IO_ROOM", 0) / status->f_frsize;
    return outcome;
}

int mkdir(const char *path, mode_t mode) {
    return is_below(path) && fails(NEEDS_SPACE) ? -1 : REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    return is_below(from) && fails(NEEDS_SPACE) ? -1 : REAL(rename)(from, to);
}

int unlink(const char *path) {
    return is_below(path) && fails(FREES_SPACE) ? -1 : REAL(unlink)(path);
}

int rmdir(const char *path) {
    return is_below(path) && fails(FREES_SPACE) ? -1 : REAL(rmdir)(path);
}

int remove(const char *path) {
    return is_below(path) && fails(FREES_SPACE) ? -1 : REAL(remove)(path);
}
