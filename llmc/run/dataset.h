// Token shards in the format of llm.c, and the order in which their samples are trained.
//
// A shard is 256 little-endian int32 (magic, version, token count, rest unused) and then the tokens: magic
// 20240520 version 1 has uint16 tokens, magic 20240801 version 7 uint32. Sample i of a shard with N = seq_len
// is the N + 1 tokens from i*N to i*N + N: N inputs, and for each input the next token as its target.
#pragma once
#include "base/common.h"

typedef struct {
    char *path;
    int token_bytes;      // 2 or 4
    int64_t tokens;       // in the file
    int64_t first_sample; // the number, in the whole dataset, of the shard's first sample
    int64_t samples;      // in the shard
} Shard;

typedef struct {
    const char *option; // the option that named the shards, for messages
    Shard *shards;      // sorted by path
    int shard_count;
    int64_t seq_len, vocab_size;
    int64_t samples;       // over all shards
    int64_t tokens;        // over all shards
    int64_t largest_token; // that check_all saw; 0 without it
} Dataset;

// Opens and validates every file that `pattern` (a glob) matches: magic, version, size against token count,
// and with check_all (which reads the whole file) that every token is below vocab_size. Ends the process with
// one line that names `option`, the file and the position of the fault. A shard shorter than one sample is
// skipped with a warning; if there is no sample at all the process ends.
Dataset dataset_open(const char *option, const char *pattern, int64_t seq_len, int64_t vocab_size,
                     bool check_all);
void dataset_close(Dataset *dataset);

// Reads inputs and targets int32[count] of one sample, beginning at its token `first`. If the file vanished,
// shrank or cannot be read, or has a token beyond the vocabulary, ends the process with a line that names
// file and place.
void dataset_read(const Dataset *dataset, int64_t sample, int64_t first, int64_t count, int32_t *inputs,
                  int32_t *targets);

// The sample at `position` (0, 1, 2, …, without end) of the training order. Every epoch has each sample once,
// in an order that depends on seed and epoch only.
int64_t dataset_order(const Dataset *dataset, uint64_t seed, int64_t position);
