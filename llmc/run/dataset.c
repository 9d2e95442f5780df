#include "run/dataset.h"

#include "base/files.h"
#include "base/random.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_WORDS 256
#define HEADER_BYTES (HEADER_WORDS * (int64_t)sizeof(int32_t))
#define BLOCK_BYTES  ((int64_t)8 << 20)
#define READ_TOKENS  16384

static const struct {
    int32_t magic, version;
    int token_bytes;
} formats[] = {{20240520, 1, 2}, {20240801, 7, 4}};

static void parse_header(const char *option, Shard *shard, const int32_t *header) {
    const int32_t magic = header[0], version = header[1], count = header[2];
    size_t format = 0;
    while (format < COUNT_OF(formats) && formats[format].magic != magic) format++;
    if (format == COUNT_OF(formats))
        fatal("%s: %s is not a token shard: its magic number is %d, not %d (uint16 tokens) or %d (uint32 "
              "tokens)",
              option, shard->path, magic, formats[0].magic, formats[1].magic);
    if (version != formats[format].version)
        fatal("%s: %s has version %d; with the magic number %d it must be %d", option, shard->path, version,
              magic, formats[format].version);
    if (count < 0)
        fatal("%s: %s has a token count of %d; a shard holds 0 to 2147483647 tokens", option, shard->path,
              count);
    shard->token_bytes = formats[format].token_bytes;
    shard->tokens = count;
}

static void check_size(const char *option, const Shard *shard, int64_t size) {
    const int64_t expected = HEADER_BYTES + shard->tokens * shard->token_bytes;
    if (size == expected) return;
    fatal("%s: %s has %ld bytes; with the %ld tokens of %d bytes that its header counts it must have %ld",
          option, shard->path, (long)size, (long)shard->tokens, shard->token_bytes, (long)expected);
}

static uint32_t token_at(const void *tokens, int token_bytes, int64_t i) {
    uint16_t narrow;
    uint32_t wide;
    if (token_bytes == 4)
        memcpy(&wide, (const uint32_t *)tokens + i, sizeof(wide));
    else
        memcpy(&narrow, (const uint16_t *)tokens + i, sizeof(narrow));
    return token_bytes == 4 ? wide : narrow;
}

static uint32_t largest_token(const void *tokens, int token_bytes, int64_t count) {
    if (token_bytes == 2) {
        uint16_t largest = 0;
        for (int64_t i = 0; i < count; i++)
            if (((const uint16_t *)tokens)[i] > largest) largest = ((const uint16_t *)tokens)[i];
        return largest;
    }
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++)
        if (((const uint32_t *)tokens)[i] > largest) largest = ((const uint32_t *)tokens)[i];
    return largest;
}

NORETURN static void cannot_read(const char *option, const Shard *shard, int64_t offset, int64_t got) {
    fatal("%s: cannot read %s at byte %ld: %s", option, shard->path, (long)offset,
          got < 0 ? strerror(errno) : "the file ends there");
}

NORETURN static void bad_token(const char *option, const Shard *shard, int64_t position, uint32_t token,
                               int64_t vocab_size) {
    fatal("%s: token %ld of %s is %u; with --vocab-size %ld tokens are 0 to %ld", option, (long)position,
          shard->path, token, (long)vocab_size, (long)vocab_size - 1);
}

// Returns the largest token seen. Where none can be too large only the first block is looked at.
static int64_t check_tokens(const char *option, const Shard *shard, int descriptor, int64_t vocab_size) {
    const bool all_fit = shard->token_bytes == 2 && vocab_size > UINT16_MAX;
    int64_t largest = 0;
    const int64_t block_tokens = min_i64(BLOCK_BYTES / shard->token_bytes, shard->tokens);
    void *block = host_allocate((size_t)block_tokens, (size_t)shard->token_bytes, "a block of tokens");
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
    const int64_t end = all_fit ? block_tokens : shard->tokens;
    for (int64_t first = 0; first < end; first += block_tokens) {
        const int64_t count = min_i64(block_tokens, shard->tokens - first);
        const int64_t offset = HEADER_BYTES + first * shard->token_bytes, bytes = count * shard->token_bytes;
        const int64_t got = file_read(descriptor, block, (size_t)bytes, offset);
        if (got != bytes) cannot_read(option, shard, offset + max_i64(got, 0), got);
        largest = max_i64(largest, largest_token(block, shard->token_bytes, count));
        if (largest < vocab_size) continue;
        int64_t bad = 0;
        while (token_at(block, shard->token_bytes, bad) < vocab_size) bad++;
        bad_token(option, shard, first + bad, token_at(block, shard->token_bytes, bad), vocab_size);
    }
    free(block);
    return largest;
}

// With check_all, *largest becomes the largest token seen if that is larger.
static Shard open_shard(const char *option, const char *path, int64_t seq_len, int64_t vocab_size,
                        bool check_all, int64_t *largest) {
    Shard shard = {.path = format_string("%s", path)};
    struct stat status;
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fstat(descriptor, &status) != 0)
        fatal("%s: cannot open %s: %s", option, path, strerror(errno));
    if (!S_ISREG(status.st_mode)) fatal("%s: %s is not a file", option, path);
    if (status.st_size < HEADER_BYTES)
        fatal("%s: %s has %ld bytes, fewer than the %ld of a token shard's header", option, path,
              (long)status.st_size, (long)HEADER_BYTES);
    int32_t header[HEADER_WORDS];
    const int64_t got = file_read(descriptor, header, HEADER_BYTES, 0);
    if (got != HEADER_BYTES) cannot_read(option, &shard, max_i64(got, 0), got);
    parse_header(option, &shard, header);
    check_size(option, &shard, status.st_size);
    if (check_all) *largest = max_i64(*largest, check_tokens(option, &shard, descriptor, vocab_size));
    close(descriptor);
    shard.samples =
        max_i64(shard.tokens - 1, 0) / seq_len; // the last target of a sample is one token further
    return shard;
}

Dataset dataset_open(const char *option, const char *pattern, int64_t seq_len, int64_t vocab_size,
                     bool check_all) {
    glob_t found;
    const int outcome = glob(pattern, 0, NULL, &found);
    if (outcome == GLOB_NOMATCH) fatal("%s: no file matches %s", option, pattern);
    if (outcome != 0) fatal("%s: cannot look for %s: %s", option, pattern, strerror(errno));
    Dataset dataset = {.option = option, .seq_len = seq_len, .vocab_size = vocab_size};
    dataset.shards = host_allocate(found.gl_pathc, sizeof(Shard), "the list of shards");
    int64_t longest = 0;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        Shard shard =
            open_shard(option, found.gl_pathv[i], seq_len, vocab_size, check_all, &dataset.largest_token);
        longest = max_i64(longest, shard.tokens);
        if (shard.samples == 0) {
            if (check_all) // true on one process only, so that one warns
                warning("%s: %s is skipped: it has %ld tokens, and a sample of --seq-len %ld needs %ld",
                        option, shard.path, (long)shard.tokens, (long)seq_len, (long)seq_len + 1);
            free(shard.path);
            continue;
        }
        shard.first_sample = dataset.samples;
        dataset.samples += shard.samples;
        dataset.tokens += shard.tokens;
        dataset.shards[dataset.shard_count++] = shard;
    }
    if (dataset.samples == 0)
        fatal("%s: %s holds no sample: --seq-len %ld needs shards of at least %ld tokens, the longest of %zu "
              "has %ld",
              option, pattern, (long)seq_len, (long)seq_len + 1, found.gl_pathc, (long)longest);
    globfree(&found);
    return dataset;
}

void dataset_close(Dataset *dataset) {
    for (int i = 0; i < dataset->shard_count; i++) free(dataset->shards[i].path);
    free(dataset->shards);
    *dataset = (Dataset){0};
}

static const Shard *shard_of_sample(const Dataset *dataset, int64_t sample) {
    int first = 0, end = dataset->shard_count;
    while (end - first > 1) {
        const int middle = first + (end - first) / 2;
        if (dataset->shards[middle].first_sample <= sample)
            first = middle;
        else
            end = middle;
    }
    return &dataset->shards[first];
}

// The file is opened for each read: shards may be more than a process may hold open.
void dataset_read(const Dataset *dataset, int64_t sample, int64_t first, int64_t count, int32_t *inputs,
                  int32_t *targets) {
    const Shard *shard = shard_of_sample(dataset, sample);
    const int64_t first_token = (sample - shard->first_sample) * dataset->seq_len + first;
    const int descriptor = open(shard->path, O_RDONLY | O_CLOEXEC);
    uint32_t block[READ_TOKENS];
    for (int64_t done = 0; done <= count; done += READ_TOKENS) { // the last target is one token further
        const int64_t tokens = min_i64(READ_TOKENS, count + 1 - done);
        const int64_t offset = HEADER_BYTES + (first_token + done) * shard->token_bytes;
        const int64_t bytes = tokens * shard->token_bytes;
        const int64_t got = descriptor < 0 ? -1 : file_read(descriptor, block, (size_t)bytes, offset);
        if (got != bytes) cannot_read(dataset->option, shard, offset + max_i64(got, 0), got);
        for (int64_t i = 0; i < tokens; i++) {
            const uint32_t found = token_at(block, shard->token_bytes, i);
            if (found >= dataset->vocab_size)
                bad_token(dataset->option, shard, first_token + done + i, found, dataset->vocab_size);
            const int32_t token = (int32_t)found;
            if (done + i < count) inputs[done + i] = token;
            if (done + i > 0) targets[done + i - 1] = token;
        }
    }
    close(descriptor);
}

int64_t dataset_order(const Dataset *dataset, uint64_t seed, int64_t position) {
    const uint64_t epoch = (uint64_t)(position / dataset->samples);
    const uint64_t key = random_u64(random_key(seed, "epoch"), epoch);
    return random_permute(position % dataset->samples, dataset->samples, key);
}
