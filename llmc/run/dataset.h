// Token shards in the llm.c format, and the order their samples are trained in.
//
// A shard is 256 little-endian int32 (magic, version, token count, rest unused) and then the tokens: magic
// 20240520 version 1 has uint16 tokens, magic 20240801 version 7 uint32. Sample i of a shard with N = seq_len
// is tokens [i*N, i*N + N]: N inputs and the N targets that follow each of them.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char *path;
    int token_bytes;      // 2 or 4
    int64_t tokens;       // in the file
    int64_t first_sample; // of the dataset
    int64_t samples;
} Shard;

typedef struct {
    const char *option; // that named the shards, for messages
    Shard *shards;      // sorted by path
    int shard_count;
    int64_t seq_len, vocab_size;
    int64_t samples; // over all shards
    int64_t tokens;  // over all shards
} Dataset;

// Opens every file that `pattern` (a glob) matches and validates it before returning: magic, version, size
// against count, and with check_all, which reads it whole, every token below vocab_size. Fails with one line
// that names `option`, the file and the position of what is wrong. A shard shorter than one sample is skipped
// with a warning; no sample at all is an error.
Dataset dataset_open(const char *option, const char *pattern, int64_t seq_len, int64_t vocab_size,
                     bool check_all);
void dataset_close(Dataset *dataset);

// Inputs and targets int32[count] of one sample, from its token `first` on. A file that vanished, shrank or
// cannot be read, or a token beyond the vocabulary, is a failure that names the file and the place.
void dataset_read(const Dataset *dataset, int64_t sample, int64_t first, int64_t count, int32_t *inputs,
                  int32_t *targets);

// Which sample stands at `position` (0, 1, 2, …, without end) of the training order: every epoch holds each
// sample once, in an order of its own that depends on seed and epoch alone.
int64_t dataset_order(const Dataset *dataset, uint64_t seed, int64_t position);

#ifdef __cplusplus
}
#endif
