// Opens a token shard with the input as its contents; the input's first bytes choose sequence length and
// vocabulary. If the shard is accepted, every sample must be readable and have tokens below the vocabulary
// size.
#include "harness.h"

#include "run/dataset.h"

#include <stdlib.h>
#include <string.h>

enum { SETTINGS = 4, HEADER_BYTES = 1024, MOST_SEQ_LEN = 256 };

typedef struct {
    const char *path;
    int64_t seq_len, vocab_size;
} Input;

static void read_all(void *argument) {
    const Input *input = (const Input *)argument;
    Dataset dataset = dataset_open("--train-data", input->path, input->seq_len, input->vocab_size, true);
    int32_t inputs[MOST_SEQ_LEN], targets[MOST_SEQ_LEN];
    for (int64_t sample = 0; sample < dataset.samples; sample++) {
        dataset_read(&dataset, sample, 0, dataset.seq_len, inputs, targets);
        for (int64_t i = 0; i < input->seq_len; i++)
            if (inputs[i] < 0 || inputs[i] >= input->vocab_size || targets[i] < 0 ||
                targets[i] >= input->vocab_size)
                abort();
        const int64_t place = dataset_order(&dataset, 1, sample);
        if (place < 0 || place >= dataset.samples) abort();
    }
    dataset_close(&dataset);
}

static void add_seed(int argc, char **argv, const char *name, int token_bytes, int32_t count) {
    uint8_t seed[SETTINGS + HEADER_BYTES + 256] = {7, 0, 1, 0}; // sequences of 8, a vocabulary of 257
    const int32_t header[] = {token_bytes == 2 ? 20240520 : 20240801, token_bytes == 2 ? 1 : 7, count};
    memcpy(seed + SETTINGS, header, sizeof(header));
    for (int32_t i = 0; i < count; i++) seed[SETTINGS + HEADER_BYTES + i * token_bytes] = (uint8_t)i;
    seed_corpus(argc, argv, name, seed, (size_t)(SETTINGS + HEADER_BYTES + count * token_bytes));
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    add_seed(*argc, *argv, "narrow", 2, 40);
    add_seed(*argc, *argv, "wide", 4, 40);
    add_seed(*argc, *argv, "short", 2, 3);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes < SETTINGS) return -1;
    uint16_t vocabulary;
    memcpy(&vocabulary, data + 1, sizeof(vocabulary));
    // Large vocabularies too: 16-bit tokens are then always valid and are not checked.
    const int64_t vocab_size = data[3] & 1 ? ((int64_t)vocabulary + 1) << 14 : (int64_t)vocabulary + 1;
    Input input = {memory_file(data + SETTINGS, bytes - SETTINGS), 1 + data[0], vocab_size};
    survives(read_all, &input);
    return 0;
}
