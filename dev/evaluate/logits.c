// Writes the logits of a checkpoint's model at some positions of one sample, to compare with another
// program's.
//
//   logits CHECKPOINT SHARD SEQ_LEN OUT [cpu|cuda]
//
// OUT, little-endian: int32 {20241101, 1, seq_len, vocab_size, positions}, int32 tokens[seq_len],
// int32 positions[positions], float32 logits[positions][vocab_size]. The positions are up to 256 at the
// start, in the middle and at the end.
#include "common.h"
#include "run/dataset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RANGE = 256 };

static void write_all(FILE *file, const void *data, size_t size, size_t count, const char *path) {
    if (fwrite(data, size, count, file) != count) fatal("cannot write %s: %s", path, strerror(errno));
}

// Computes and writes the logits of positions [first, first + count) as float32.
static void write_logits(FILE *file, Evaluation *model, const int32_t *inputs, int64_t first, int64_t count,
                         const char *path) {
    const size_t values = (size_t)(count * model->options.config.vocab_size);
    double *wide = evaluation_logits(model, inputs, first, count);
    float *logits = host_allocate(values, sizeof(float), "logits");
    storage_from_double(logits, STORAGE_FLOAT32, wide, values);
    write_all(file, logits, sizeof(float), values, path);
    free(wide);
    free(logits);
}

int main(int argc, char **argv) {
    if (argc < 5) fatal("usage: logits CHECKPOINT SHARD SEQ_LEN OUT [cpu|cuda]");
    const int64_t seq_len = parse_integer("SEQ_LEN", argv[3], 1, 1 << 30);
    Evaluation model = evaluation_open(&argc, &argv, argv[1], argc > 5 ? argv[5] : "auto");
    const int64_t vocab_size = model.options.config.vocab_size;
    evaluation_set_length(&model, seq_len, false);

    Dataset data = dataset_open("SHARD", argv[2], seq_len, vocab_size, true);
    int32_t *inputs = host_allocate((size_t)seq_len, sizeof(int32_t), "tokens");
    int32_t *targets = host_allocate((size_t)seq_len, sizeof(int32_t), "tokens");
    dataset_read(&data, 0, 0, seq_len, inputs, targets);

    const int64_t count = min_i64(RANGE, divide_up(seq_len, 3));
    const int64_t firsts[] = {0, (seq_len - count) / 2, seq_len - count};
    FILE *file = fopen(argv[4], "wb");
    if (!file) fatal("cannot write %s: %s", argv[4], strerror(errno));
    const int32_t header[] = {20241101, 1, (int32_t)seq_len, (int32_t)vocab_size,
                              (int32_t)(count * (int64_t)COUNT_OF(firsts))};
    write_all(file, header, sizeof(int32_t), COUNT_OF(header), argv[4]);
    write_all(file, inputs, sizeof(int32_t), (size_t)seq_len, argv[4]);
    for (size_t i = 0; i < COUNT_OF(firsts); i++)
        for (int64_t row = 0; row < count; row++) {
            const int32_t position = (int32_t)(firsts[i] + row);
            write_all(file, &position, sizeof(position), 1, argv[4]);
        }
    for (size_t i = 0; i < COUNT_OF(firsts); i++)
        write_logits(file, &model, inputs, firsts[i], count, argv[4]);
    if (fclose(file) != 0) fatal("cannot write %s: %s", argv[4], strerror(errno));
    printf("%s: logits at %d of %ld positions\n", argv[4], (int)header[4], (long)seq_len);
    free(inputs);
    free(targets);
    dataset_close(&data);
    evaluation_close(&model);
    return 0;
}
