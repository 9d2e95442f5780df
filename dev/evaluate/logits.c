// Writes the logits of a checkpoint's model at some positions of one sample, to compare with another
// program's.
//
//   logits CHECKPOINT SHARD SEQ_LEN OUT [cpu|cuda]
//
// OUT, little-endian: int32 {20241101, 1, seq_len, vocab_size, positions}, int32 tokens[seq_len],
// int32 positions[positions], float32 logits[positions][vocab_size]. The positions are up to 256 at the
// start, in the middle and at the end.
#include "run/dataset.h"
#include "training/training.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RANGE = 256 };

static void write_all(FILE *file, const void *data, size_t size, size_t count, const char *path) {
    if (fwrite(data, size, count, file) != count) fatal("cannot write %s: %s", path, strerror(errno));
}

// Computes and writes the logits of positions [first, first + count) as float32.
static void write_logits(FILE *file, Decoder *decoder, const int32_t *inputs, int64_t first, int64_t count,
                         const char *path) {
    const StorageType storage = decoder->layers.device->ops->storage;
    const size_t values = (size_t)(count * decoder->layers.config.vocab_size);
    void *raw = host_allocate(values, storage_size(storage), "logits");
    double *wide = host_allocate(values, sizeof(double), "logits");
    float *logits = host_allocate(values, sizeof(float), "logits");
    decoder_logits(decoder, raw, inputs, first, count);
    storage_to_double(wide, raw, storage, values);
    storage_from_double(logits, STORAGE_FLOAT32, wide, values);
    write_all(file, logits, sizeof(float), values, path);
    free(raw);
    free(wide);
    free(logits);
}

int main(int argc, char **argv) {
    if (argc < 5) fatal("usage: logits CHECKPOINT SHARD SEQ_LEN OUT [cpu|cuda]");
    const int64_t seq_len = atoll(argv[3]);
    if (seq_len < 1) fatal("%s: expected a sequence length", argv[3]);
    const Communicator communicator = communicator_create(&argc, &argv);
    const Checkpoint checkpoint = checkpoint_open(&communicator, argv[1], NULL);
    char *words[] = {
        argv[0], "--device", argc > 5 ? argv[5] : "auto", "--batch-size", "1", "--recompute", "block", "--cp",
        "1",     NULL};
    Options options = options_parse((int)COUNT_OF(words) - 1, words, checkpoint.options);
    options.seq_len = seq_len;
    options.selection = false;
    Collectives *collectives =
        collectives_create(training_open_device(&options, &communicator), &communicator);
    Training training = training_plan(collectives, &options);
    training_allocate(&training);
    const TrainingState state = training_state(&training);
    checkpoint_load(&checkpoint, &state);

    Dataset data = dataset_open("SHARD", argv[2], seq_len, options.config.vocab_size, true);
    int32_t *inputs = host_allocate((size_t)seq_len, sizeof(int32_t), "tokens");
    int32_t *targets = host_allocate((size_t)seq_len, sizeof(int32_t), "tokens");
    dataset_read(&data, 0, 0, seq_len, inputs, targets);

    const int64_t count = min_i64(RANGE, divide_up(seq_len, 3));
    const int64_t firsts[] = {0, (seq_len - count) / 2, seq_len - count};
    FILE *file = fopen(argv[4], "wb");
    if (!file) fatal("cannot write %s: %s", argv[4], strerror(errno));
    const int32_t header[] = {20241101, 1, (int32_t)seq_len, (int32_t)options.config.vocab_size,
                              (int32_t)(count * (int64_t)COUNT_OF(firsts))};
    write_all(file, header, sizeof(int32_t), COUNT_OF(header), argv[4]);
    write_all(file, inputs, sizeof(int32_t), (size_t)seq_len, argv[4]);
    for (size_t i = 0; i < COUNT_OF(firsts); i++)
        for (int64_t row = 0; row < count; row++) {
            const int32_t position = (int32_t)(firsts[i] + row);
            write_all(file, &position, sizeof(position), 1, argv[4]);
        }
    for (size_t i = 0; i < COUNT_OF(firsts); i++)
        write_logits(file, training.decoder, inputs, firsts[i], count, argv[4]);
    if (fclose(file) != 0) fatal("cannot write %s: %s", argv[4], strerror(errno));
    printf("%s: logits at %d of %ld positions\n", argv[4], (int)header[4], (long)seq_len);
    return 0;
}
