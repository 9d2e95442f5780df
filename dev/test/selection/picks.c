// Selections alone: what holds of all of them, ties, sizes, and what the published implementation selects.
#include "dev/test/selection/tests.h"

#include "dev/test/selection/picture.h"

#include <stdlib.h>

void selections_have_their_properties(void *argument) {
    for (int64_t levels = 2; levels <= 5; levels++)
        for (int64_t pool = 2; pool <= 8; pool *= 2)
            for (int kind = 0; kind < SCORE_KINDS; kind++) {
                const LighthouseShape shape = random_shape(levels, pool);
                double *scores = make_scores(&shape, (ScoreKind)kind);
                int32_t *positions = select_by(argument, &shape, scores);
                check_selection(&shape, positions, scores);
                free(scores);
                free(positions);
            }
}

// With equal scores the first candidates of a chunk are picked, level after level.
void ties_go_to_the_lower_index(void *argument) {
    const LighthouseShape shape = shape_of(3, 4, 48, 16, 2, 2304, 2, 1, 8);
    for (int kind = EQUAL; kind <= ALL_NAN; kind += ALL_NAN - EQUAL) {
        double *scores = make_scores(&shape, (ScoreKind)kind);
        int32_t *positions = select_by(argument, &shape, scores);
        for (int64_t i = 0; i < shape.batch * shape.heads * 2; i++) {
            const int level = 1 + (int)(i % 2);
            const Picture p = {&shape, positions + i / 2 * shape.pyramid, NULL, NULL, i / 2};
            const int64_t part = level_entries(&shape, level) / shape.chunks;
            for (int64_t j = 0; j < part * shape.chunks; j++)
                check(is_parent(&p, level, j) == (j % part < shape.tile), "(%d,%ld) was picked wrongly",
                      level, (long)j);
        }
        free(scores);
        free(positions);
    }
}

void long_chunks_are_streamed(void *argument) {
    const LighthouseShape shape = shape_of(2, 2, 128, 128, 1, 131072, 1, 1, 8);
    for (int kind = 0; kind <= EXTREMES; kind++) {
        double *scores = make_scores(&shape, (ScoreKind)kind);
        int32_t *positions = select_by(argument, &shape, scores);
        check_selection(&shape, positions, scores);
        free(scores);
        free(positions);
    }
}

// As many picks as the device has room for. The CPU has room for any.
void most_picks_fit(void *argument) {
    Device *device = argument;
    int tile = 1 << 16;
    LighthouseShape shape = shape_with(2, tile);
    while (!is_supported(device, &shape)) shape = shape_with(2, tile -= 2);
    double *scores = make_scores(&shape, NORMAL);
    int32_t *positions = select_by(device, &shape, scores);
    check_selection(&shape, positions, scores);
    free(scores);
    free(positions);
}

// int32 seq_len, heads, levels, pool, topk, tile, entries, 0; float32 query and key scores [heads, seq_len];
// int32 levels and indices [heads, entries]: what the published implementation selects.
static void check_published(Device *device, const char *path) {
    FILE *file = fopen(path, "rb");
    int32_t head[8];
    if (!file || fread(head, sizeof(head), 1, file) != 1) fatal("cannot read %s", path);
    const LighthouseShape shape =
        shape_of(head[2], head[3], head[4], head[5], 1, head[0], head[1], head[1], 8);
    check(shape.entries == head[6], "%s: %ld entries, not %d", path, (long)shape.entries, head[6]);
    const size_t scores = 2 * (size_t)(shape.heads * shape.seq_len);
    const size_t entries = (size_t)(shape.heads * shape.entries);
    float *floats = host_allocate(scores, sizeof(float), path);
    int32_t *expected = host_allocate(2 * entries, sizeof(int32_t), path);
    if (fread(floats, sizeof(float), scores, file) != scores ||
        fread(expected, sizeof(int32_t), 2 * entries, file) != 2 * entries || fgetc(file) != EOF)
        fatal("%s has another length than it says", path);
    fclose(file);
    double *level_0 = host_allocate(scores, sizeof(double), path);
    for (size_t i = 0; i < scores; i++) level_0[i] = floats[i];
    int32_t *positions = select_by(device, &shape, level_0);
    for (int64_t h = 0; h < shape.heads; h++) {
        const Picture p = {&shape, positions + h * shape.pyramid, NULL, NULL, h};
        EntryName *sequence = sequence_of(&p);
        for (int64_t i = 0; i < shape.entries; i++) {
            const int32_t *entry = expected + h * shape.entries + i;
            check(sequence[i].level == entry[0] && sequence[i].index == entry[entries],
                  "%s: entry %ld is (%d,%ld), should be (%d,%d)", path, (long)i, sequence[i].level,
                  (long)sequence[i].index, entry[0], entry[entries]);
        }
        free(sequence);
    }
    free(floats);
    free(expected);
    free(level_0);
    free(positions);
}

void published_selections_are_reproduced(void *argument) {
    check_published(argument, fixture("select_n4096_h1_l2_p8_k256.bin"));
    check_published(argument, fixture("select_n8192_h1_l4_p2_k256.bin"));
}
