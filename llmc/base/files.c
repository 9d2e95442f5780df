#include "base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)4 << 20)

int64_t file_read(int descriptor, void *out, size_t bytes, int64_t offset) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(descriptor, (char *)out + done, bytes - done, offset + (int64_t)done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        done += (size_t)got;
    }
    return (int64_t)done;
}

// Closes the file, and keeps errno as an earlier failure set it.
static void close_quietly(int descriptor) {
    int cause = errno;
    close(descriptor);
    errno = cause;
}

char *file_read_text(const char *path, size_t limit, size_t *size) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return NULL;
    struct stat status;
    char *text = NULL;
    int64_t length = -1;
    if (fstat(descriptor, &status) == 0) {
        if (status.st_size >= 0 && (uint64_t)status.st_size <= limit) {
            text = calloc((size_t)status.st_size + 1, 1);
            if (text) length = file_read(descriptor, text, (size_t)status.st_size, 0);
        } else {
            errno = EFBIG;
        }
    }
    close_quietly(descriptor);
    if (length < 0) {
        free(text);
        return NULL;
    }
    text[length] = 0;
    if (size) *size = (size_t)length;
    return text;
}

// Returns NULL, with errno ENOMEM, if memory is short.
static XXH3_state_t *hash_start(void) {
    XXH3_state_t *state = XXH3_createState();
    if (state)
        XXH3_128bits_reset(state);
    else
        errno = ENOMEM;
    return state;
}

static void hash_end(XXH3_state_t *state, char hash[FILE_HASH_SIZE]) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    for (size_t i = 0; i < sizeof(canonical.digest); i++) sprintf(hash + 2 * i, "%02x", canonical.digest[i]);
}

bool file_hash(const char *path, char hash[FILE_HASH_SIZE]) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return false;
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
    struct stat status;
    const bool small = fstat(descriptor, &status) == 0 && status.st_size < (off_t)BLOCK_BYTES;
    const size_t block_bytes = small ? (size_t)status.st_size + 1 : BLOCK_BYTES;
    void *block = calloc(block_bytes, 1);
    XXH3_state_t *state = block ? hash_start() : NULL;
    int64_t offset = 0, got = -1;
    while (state && (got = file_read(descriptor, block, block_bytes, offset)) > 0) {
        XXH3_128bits_update(state, block, (size_t)got);
        offset += got;
    }
    if (state) hash_end(state, hash);
    free(block);
    close_quietly(descriptor);
    return got == 0;
}

bool file_create(FileWriter *file, const char *path) {
    int descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) return false;
    *file = (FileWriter){.descriptor = descriptor, .state = hash_start()};
    if (!file->state) close_quietly(descriptor);
    return file->state != NULL;
}

bool file_append(FileWriter *file, const void *data, size_t bytes) {
    XXH3_128bits_update(file->state, data, bytes);
    for (size_t done = 0; done < bytes;) {
        ssize_t put = write(file->descriptor, (const char *)data + done, bytes - done);
        if (put < 0 && errno == EINTR) continue;
        if (put == 0) errno = EIO; // a file system that takes nothing and does not say why
        if (put <= 0) return false;
        done += (size_t)put;
    }
    // Starts writing to the disk now, so that file_finish waits less. Where it is not supported nothing is
    // lost.
    sync_file_range(file->descriptor, file->bytes, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    file->bytes += (int64_t)bytes;
    return true;
}

bool file_finish(FileWriter *file, char hash[FILE_HASH_SIZE]) {
    char unused[FILE_HASH_SIZE];
    hash_end(file->state, hash ? hash : unused);
    if (fsync(file->descriptor) != 0) {
        close_quietly(file->descriptor);
        return false;
    }
    return close(file->descriptor) == 0;
}

void file_abandon(FileWriter *file) {
    XXH3_freeState(file->state);
    close_quietly(file->descriptor);
}

bool file_replace_text(const char *path, const char *text) {
    char temporary[PATH_MAX];
    if (snprintf(temporary, sizeof(temporary), "%s.tmp", path) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return false;
    }
    FileWriter file;
    bool done = unlink(temporary) == 0 || errno == ENOENT;
    if (done) done = file_create(&file, temporary);
    if (done) {
        done = file_append(&file, text, strlen(text));
        if (done)
            done = file_finish(&file, NULL);
        else
            file_abandon(&file);
    }
    return done && rename(temporary, path) == 0;
}

bool directory_make(const char *path) {
    char partial[PATH_MAX];
    if (snprintf(partial, sizeof(partial), "%s", path) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return false;
    }
    bool made = true;
    for (char *end = partial + (*partial == '/'); made; end++) {
        if (*end != '/' && *end != 0) continue;
        const char separator = *end;
        *end = 0;
        made = mkdir(partial, 0777) == 0 || errno == EEXIST;
        *end = separator;
        if (separator == 0) break;
    }
    struct stat status;
    if (made) made = stat(path, &status) == 0;
    if (made && !S_ISDIR(status.st_mode)) {
        errno = ENOTDIR;
        made = false;
    }
    return made;
}

int64_t disk_room(const char *path) {
    char parent[PATH_MAX];
    struct statvfs status;
    if (snprintf(parent, sizeof(parent), "%s", path) >= (int)sizeof(parent)) return -1;
    while (statvfs(parent[0] ? parent : ".", &status) != 0) {
        if (errno != ENOENT || !parent[0]) return -1;
        char *end = strrchr(parent, '/');
        if (!end) end = parent;
        end[end == parent && *end == '/' && end[1] != 0] = 0; // of "/name" stays "/"
    }
    return (int64_t)(status.f_bavail * status.f_frsize);
}

bool directory_sync(const char *path) {
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return false;
    bool synced =
        fsync(descriptor) == 0 || errno == EINVAL; // EINVAL: this file system has nothing to wait for
    close_quietly(descriptor);
    return synced;
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *place) {
    (void)status, (void)type, (void)place;
    return remove(path);
}

bool directory_remove(const char *path) {
    const int open_directories = 16;
    return nftw(path, remove_entry, open_directories, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT;
}
