// Token shards: validation, samples, and the order of training.
#include "test.h"

#include "run/dataset.h"
#include "base/random.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER_BYTES 1024
#define NO_PATCH     -1

// A fault to put into a shard: a wrong word of its header, a wrong token, or a wrong length.
typedef struct {
    int word; // the index of the header's word to replace by `value`; NO_PATCH: none
    int32_t value;
    int64_t token; // the index of the token to replace by `id`; NO_PATCH: none
    uint32_t id;
    int64_t extra_bytes; // appended, or cut off if negative
} Fault;

static const Fault no_fault = {NO_PATCH, 0, NO_PATCH, 0, 0};

static void write_shard(const char *path, int token_bytes, const uint32_t *tokens, int64_t count,
                        Fault fault) {
    int32_t header[HEADER_BYTES / 4] = {token_bytes == 2 ? 20240520 : 20240801, token_bytes == 2 ? 1 : 7,
                                        (int32_t)count};
    if (fault.word != NO_PATCH) header[fault.word] = fault.value;
    FILE *file = fopen(path, "wb");
    fwrite(header, sizeof(header), 1, file);
    for (int64_t i = 0; i < count; i++) {
        const uint32_t wide = i == fault.token ? fault.id : tokens[i];
        const uint16_t narrow = (uint16_t)wide;
        fwrite(token_bytes == 2 ? (const void *)&narrow : (const void *)&wide, (size_t)token_bytes, 1, file);
    }
    for (int64_t i = 0; i < fault.extra_bytes; i++) fputc(0, file);
    fclose(file);
    const int64_t size = HEADER_BYTES + count * token_bytes + fault.extra_bytes;
    if (fault.extra_bytes < 0) check(truncate(path, size) == 0, "cannot truncate %s", path);
}

static uint32_t *random_tokens(int64_t count, uint64_t vocab_size) {
    uint32_t *tokens = host_allocate((size_t)count, sizeof(*tokens), "a test");
    for (int64_t i = 0; i < count; i++) tokens[i] = (uint32_t)random_below(vocab_size);
    return tokens;
}

// --- good shards ----------------------------------------------------------------------------------------

// Three shards of different lengths and both token widths: every sample has the tokens that were written.
static void test_samples(void *argument) {
    const int64_t seq_len = *(const int64_t *)argument;
    const uint64_t vocab_sizes[] = {65536, 200000, 100};
    const int widths[] = {2, 4, 2};
    const int64_t counts[] = {3 * seq_len + 1, 5 * seq_len, 2 * seq_len + seq_len / 2 + 1};
    const int64_t samples[] = {3, (5 * seq_len - 1) / seq_len, (counts[2] - 1) / seq_len};
    const char *directory = test_directory();
    uint32_t *tokens[3];
    for (int i = 0; i < 3; i++) {
        char *path = format_string("%s/shard_%d.bin", directory, i);
        tokens[i] = random_tokens(counts[i], vocab_sizes[i]);
        write_shard(path, widths[i], tokens[i], counts[i], no_fault);
        free(path);
    }
    char *pattern = format_string("%s/shard_*.bin", directory);
    Dataset dataset = dataset_open("--train-data", pattern, seq_len, 200000, true);
    check(dataset.shard_count == 3, "%d shards", dataset.shard_count);
    check(dataset.samples == samples[0] + samples[1] + samples[2], "%ld samples", (long)dataset.samples);
    check(dataset.tokens == counts[0] + counts[1] + counts[2], "%ld tokens", (long)dataset.tokens);
    int32_t *inputs = host_allocate((size_t)seq_len, sizeof(int32_t), "a test");
    int32_t *targets = host_allocate((size_t)seq_len, sizeof(int32_t), "a test");
    int64_t sample = 0;
    for (int shard = 0; shard < 3; shard++)
        for (int64_t i = 0; i < samples[shard]; i++, sample++) {
            dataset_read(&dataset, sample, 0, dataset.seq_len, inputs, targets);
            const size_t bytes = (size_t)seq_len * sizeof(int32_t);
            check(!memcmp(inputs, tokens[shard] + i * seq_len, bytes), "sample %ld: its inputs",
                  (long)sample);
            check(!memcmp(targets, tokens[shard] + i * seq_len + 1, bytes), "sample %ld: its targets",
                  (long)sample);
        }
    dataset_close(&dataset);
    for (int i = 0; i < 3; i++) free(tokens[i]);
    free(inputs);
    free(targets);
    free(pattern);
}

// --- the order ------------------------------------------------------------------------------------------

static void test_order(void *unused) {
    (void)unused;
    for (int repeat = 0; repeat < 12; repeat++) {
        const int64_t samples = repeat < 6 ? repeat + 1 : (int64_t)(100 + random_below(3000));
        const Dataset dataset = {.samples = samples};
        const uint64_t seed = random_below(UINT64_MAX);
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            bool *seen = host_allocate((size_t)samples, sizeof(bool), "a test");
            int64_t like_last_epoch = 0, like_other_seed = 0;
            for (int64_t i = samples - 1; i >= 0; i--) { // backwards: no position needs another
                const int64_t position = epoch * samples + i;
                const int64_t sample = dataset_order(&dataset, seed, position);
                const bool inside = sample >= 0 && sample < samples;
                check(inside && !seen[sample], "position %ld of %ld samples: %ld", (long)position,
                      (long)samples, (long)sample);
                if (inside) seen[sample] = true;
                like_last_epoch += epoch > 0 && sample == dataset_order(&dataset, seed, position - samples);
                like_other_seed += sample == dataset_order(&dataset, seed + 1, position);
            }
            check(samples < 100 || like_last_epoch <= 12, "epochs agree on %ld of %ld samples",
                  (long)like_last_epoch, (long)samples);
            check(samples < 100 || like_other_seed <= 12, "seeds agree on %ld of %ld samples",
                  (long)like_other_seed, (long)samples);
            free(seen);
        }
    }
}

// --- refused shards -------------------------------------------------------------------------------------

typedef struct {
    const char *pattern;
    int64_t seq_len, vocab_size;
} OpenCall;

static void open_and_close(void *argument) {
    const OpenCall *call = (const OpenCall *)argument;
    Dataset dataset = dataset_open("--train-data", call->pattern, call->seq_len, call->vocab_size, true);
    dataset_close(&dataset);
}

static void test_malformed(void *unused) {
    (void)unused;
    static const struct {
        int token_bytes;
        Fault fault;
        const char *message;
    } cases[] = {
        {2, {0, 20240521, NO_PATCH, 0, 0}, "its magic number is 20240521, not 20240520"},
        {2, {0, 20240801, NO_PATCH, 0, 0}, "has version 1; with the magic number 20240801 it must be 7"},
        {2, {1, 2, NO_PATCH, 0, 0}, "has version 2; with the magic number 20240520 it must be 1"},
        {4, {1, 1, NO_PATCH, 0, 0}, "has version 1; with the magic number 20240801 it must be 7"},
        {2, {2, -1, NO_PATCH, 0, 0}, "has a token count of -1"},
        {2, {2, 999, NO_PATCH, 0, 0}, "has 3024 bytes; with the 999 tokens of 2 bytes"},
        {4, {2, INT32_MAX, NO_PATCH, 0, 0}, "it must have 8589935612"},
        {2, {NO_PATCH, 0, NO_PATCH, 0, 1}, "has 3025 bytes; with the 1000 tokens"},
        {2, {NO_PATCH, 0, NO_PATCH, 0, -1}, "has 3023 bytes; with the 1000 tokens"},
        {4, {NO_PATCH, 0, NO_PATCH, 0, -4001}, "has 1023 bytes, fewer than the 1024"},
        {2, {NO_PATCH, 0, NO_PATCH, 0, -3024}, "has 0 bytes, fewer than the 1024"},
        {2, {NO_PATCH, 0, 0, 300, 0}, "token 0 of "},
        {2, {NO_PATCH, 0, 999, 300, 0}, "token 999 of "},
        {2, {NO_PATCH, 0, 517, 300, 0}, "is 300; with --vocab-size 300 tokens are 0 to 299"},
        {4, {NO_PATCH, 0, 517, UINT32_MAX, 0}, "is 4294967295; with --vocab-size 300 tokens are 0 to 299"},
    };
    uint32_t *tokens = random_tokens(1000, 300);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *path = format_string("%s/bad.bin", test_directory());
        write_shard(path, cases[i].token_bytes, tokens, 1000, cases[i].fault);
        OpenCall call = {path, 100, 300};
        check_dies(open_and_close, &call, cases[i].message);
        check_dies(open_and_close, &call, path);
        check_dies(open_and_close, &call, "--train-data");
        free(path);
    }
    free(tokens);
}

static void test_not_a_shard(void *unused) {
    (void)unused;
    const char *directory = test_directory();
    char *pattern = format_string("%s/*.bin", directory);
    char *message = format_string("--train-data: no file matches %s", pattern);
    OpenCall call = {pattern, 100, 300};
    check_dies(open_and_close, &call, message);
    call.pattern = directory;
    check_dies(open_and_close, &call, "is not a file");
    free(message);
    free(pattern);
}

// The bad token is in the second of two files, beyond the first block that the check reads.
static void test_late_bad_token(void *unused) {
    (void)unused;
    const char *directory = test_directory();
    const int64_t count = 5000000, bad = count - 1 - (int64_t)random_below(100000);
    uint32_t *tokens = random_tokens(count, 5000);
    char *pattern = format_string("%s/*", directory), *path = format_string("%s/a", directory);
    write_shard(path, 2, tokens, 1000, no_fault);
    path[strlen(path) - 1] = 'b';
    for (int token_bytes = 2; token_bytes <= 4; token_bytes += 2) {
        const Fault fault = {NO_PATCH, 0, bad, 5000, 0};
        write_shard(path, token_bytes, tokens, count, fault);
        char *message = format_string("token %ld of %s is 5000;", (long)bad, path);
        OpenCall call = {pattern, 100, 5000};
        check_dies(open_and_close, &call, message);
        call.vocab_size = 5001;
        open_and_close(&call);
        free(message);
    }
    free(pattern);
    free(path);
    free(tokens);
}

// --- short files ----------------------------------------------------------------------------------------

static void open_and_die(void *argument) {
    open_and_close(argument);
    fatal("opened");
}

static void test_short_shards(void *unused) {
    (void)unused;
    const char *directory = test_directory();
    uint32_t *tokens = random_tokens(1000, 300);
    char *pattern = format_string("%s/*", directory), *path = format_string("%s/a", directory);
    write_shard(path, 2, tokens, 100, no_fault);
    char *skipped = format_string("warning: --train-data: %s is skipped: it has 100 tokens, and a sample of "
                                  "--seq-len 100 needs 101",
                                  path);
    OpenCall call = {pattern, 100, 300};
    check_dies(open_and_close, &call, "holds no sample: --seq-len 100 needs shards of at least 101 tokens");
    path[strlen(path) - 1] = 'b';
    write_shard(path, 2, tokens, 0, no_fault);
    call.seq_len = 1;
    check_dies(open_and_die, &call, "b is skipped: it has 0 tokens");
    path[strlen(path) - 1] = 'c';
    write_shard(path, 2, tokens, 101, no_fault);
    call.seq_len = 100;
    check_dies(open_and_die, &call, skipped);
    Dataset dataset = dataset_open("--train-data", pattern, 100, 300, true);
    check(dataset.samples == 1 && dataset.shard_count == 1, "%ld samples in %d shards", (long)dataset.samples,
          dataset.shard_count);
    dataset_close(&dataset);
    free(skipped);
    free(pattern);
    free(path);
    free(tokens);
}

static void read_last_sample(void *argument) {
    const Dataset *dataset = (const Dataset *)argument;
    int32_t *both = host_allocate((size_t)(2 * dataset->seq_len), sizeof(int32_t), "a test");
    dataset_read(dataset, dataset->samples - 1, 0, dataset->seq_len, both, both + dataset->seq_len);
    free(both);
}

static void test_changed_after_opening(void *unused) {
    (void)unused;
    char *path = format_string("%s/shard", test_directory());
    uint32_t *tokens = random_tokens(1001, 300);
    write_shard(path, 4, tokens, 1001, no_fault);
    Dataset dataset = dataset_open("--train-data", path, 100, 300, true);
    read_last_sample(&dataset);
    const Fault changed = {NO_PATCH, 0, 930, 300, 0};
    write_shard(path, 4, tokens, 1001, changed);
    char *beyond = format_string("token 930 of %s is 300; with --vocab-size 300 tokens are 0 to 299", path);
    check_dies(read_last_sample, &dataset, beyond);
    const int64_t size = HEADER_BYTES + 950 * 4;
    write_shard(path, 4, tokens, 1001, no_fault);
    check(truncate(path, size) == 0, "cannot truncate %s", path);
    char *ends = format_string("cannot read %s at byte %ld: the file ends there", path, (long)size);
    check_dies(read_last_sample, &dataset, ends);
    check(unlink(path) == 0, "cannot remove %s", path);
    char *gone = format_string("cannot read %s at byte %d: No such file", path, HEADER_BYTES + 900 * 4);
    check_dies(read_last_sample, &dataset, gone);
    dataset_close(&dataset);
    free(beyond);
    free(gone);
    free(ends);
    free(path);
    free(tokens);
}

void test_data(void) {
    static int64_t lengths[] = {1, 2, 33, 1000, 16383, 16384, 40001}; // around the tokens read at once
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        char *name = format_string("data: samples of %ld tokens", (long)lengths[i]);
        test_run(name, test_samples, &lengths[i]);
        free(name);
    }
    test_run("data: order", test_order, NULL);
    test_run("data: malformed shards", test_malformed, NULL);
    test_run("data: not a shard", test_not_a_shard, NULL);
    test_run("data: a bad token far into a file", test_late_bad_token, NULL);
    test_run("data: short shards", test_short_shards, NULL);
    test_run("data: files that change", test_changed_after_opening, NULL);
}
