// Rotary position embedding, and the norms of its results.
#include "dev/test/ops/rope.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Variants: forward, inverse, or forward with norms, which are written to parts of longer rows. As in a
// packed projection, the first heads + kv_heads of heads + 2·kv_heads heads are turned.
enum { ROPE_FORWARD, ROPE_INVERSE, ROPE_NORMS };

void add_angles(Case *c) {
    const int64_t count = c->sizes.rows * c->sizes.head_dim;
    double *angles = add_tensor(c, "angles", INPUT, ACCUMULATED, count);
    for (int64_t i = 0; i < count; i += 2) {
        const double angle = angles[i];
        angles[i] = cos(angle);
        angles[i + 1] = sin(angle);
    }
}

static void describe_rope(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "x", UPDATED, STORED, s->batch * s->rows * (s->heads + 2 * s->kv_heads) * s->head_dim);
    add_angles(c);
    if (s->variant == ROPE_NORMS)
        add_tensor(c, "norms", UPDATED, FROM_STORED,
                   s->batch * (s->heads + s->kv_heads) * (s->rows + LONGER));
}

RUN(rope) {
    const Sizes *s = &c->sizes;
    ops->rope.rotate(at[0], s->variant == ROPE_NORMS ? at[2] : NULL, s->rows + LONGER, at[1], s->batch,
                     s->rows, s->heads + 2 * s->kv_heads, s->heads + s->kv_heads, s->head_dim,
                     s->variant == ROPE_INVERSE, stream);
}

void turn(double *x, const double *angles, const Sizes *s, bool inverse) {
    const int64_t heads = s->heads + 2 * s->kv_heads, rotated = s->heads + s->kv_heads,
                  half = s->head_dim / 2;
    for (int64_t i = 0; i < s->batch * s->rows * heads * half; i++) {
        const int64_t j = i % half, head = i / half % heads, token = i / half / heads % s->rows;
        if (head >= rotated) continue;
        double *pair = x + i / half * s->head_dim + j;
        const double *angle = angles + (token * half + j) * 2;
        const double cosine = angle[0], sine = inverse ? -angle[1] : angle[1];
        const double a = pair[0], b = pair[half];
        pair[0] = a * cosine - b * sine;
        pair[half] = a * sine + b * cosine;
    }
}

// Computes norms[batch, heads + kv_heads, rows + LONGER] of the vectors of x.
static void norms_of(double *norms, const double *x, const Sizes *s) {
    const int64_t rotated = s->heads + s->kv_heads;
    for (int64_t i = 0; i < s->batch * rotated * s->rows; i++) {
        const int64_t token = i % s->rows, head = i / s->rows % rotated, batch = i / s->rows / rotated;
        const double *from =
            x + ((batch * s->rows + token) * (s->heads + 2 * s->kv_heads) + head) * s->head_dim;
        double squares = 0;
        for (int64_t d = 0; d < s->head_dim; d++) squares += from[d] * from[d];
        norms[(batch * rotated + head) * (s->rows + LONGER) + token] = sqrt(squares);
    }
}

static void formula_rope(const Case *c, double **v) {
    turn(v[0], v[1], &c->sizes, c->sizes.variant == ROPE_INVERSE);
    if (c->sizes.variant == ROPE_NORMS) norms_of(v[2], v[0], &c->sizes);
}

static const Sizes sizes[] = {
    {.batch = 1, .rows = 1, .heads = 1, .kv_heads = 1, .head_dim = 2, .variant = ROPE_FORWARD},
    {.batch = 3, .rows = 19, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = ROPE_FORWARD},
    {.batch = 3, .rows = 19, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = ROPE_NORMS},
    {.batch = 2, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = ROPE_NORMS},
    {.batch = 2, .rows = 19, .heads = 3, .kv_heads = 3, .head_dim = 70, .variant = ROPE_INVERSE},
    {.batch = 2, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = ROPE_INVERSE},
};

// The norms alone, of heads that are not turned.
static void describe_head_norms(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "norms", UPDATED, ACCUMULATED, s->batch * (s->heads + s->kv_heads) * (s->rows + LONGER));
    add_tensor(c, "x", INPUT, STORED, s->batch * s->rows * (s->heads + 2 * s->kv_heads) * s->head_dim);
}

RUN(head_norms) {
    const Sizes *s = &c->sizes;
    ops->rope.norms(at[0], s->rows + LONGER, at[1], s->batch, s->rows, s->heads + 2 * s->kv_heads,
                    s->heads + s->kv_heads, s->head_dim, stream);
}

static void formula_head_norms(const Case *c, double **v) {
    norms_of(v[0], v[1], &c->sizes);
}

static const Operation rows[] = {
    FORWARD(rope, ONE_ROUNDING, ALL(sizes)),
    FORWARD(head_norms, ONE_ROUNDING, ALL(sizes)),
};

const OperationTable rope_operations = {rows, COUNT_OF(rows)};

// --- norms ----------------------------------------------------------------------------------------------

// Checks that norms are computed from the values as rounded to the storage type.
static void norms_are_of_what_is_stored(void *argument) {
    const OperationTest *test = (const OperationTest *)argument;
    for (int i = 0; i < test->operation->sizes_count; i++) {
        Case c = make_case(test->operation, test->operation->sizes[i], alignment_of(test->devices->tested));
        Results got = run_case(&c, test->devices->tested);
        double *expected = host_allocate(c.tensors[2].count, sizeof(double), "norms");
        memcpy(expected, got.values[2], c.tensors[2].count * sizeof(double));
        norms_of(expected, got.values[0], &c.sizes);
        check_close("norms of what is stored", got.values[2], expected, c.tensors[2].count, 1e-6);
        free(expected);
        free_results(&got);
        free_case(&c);
    }
}

// Where rope turns by nothing, the norms that it gives are those of the operation for norms alone, to the bit.
static void norms_alone_are_the_same(void *argument) {
    const OperationTest *test = (const OperationTest *)argument;
    Device *device = test->devices->tested;
    for (int i = 0; i < test->operation->sizes_count; i++) {
        const Sizes *s = &test->operation->sizes[i];
        Case turned = make_case(test->operation, *s, alignment_of(device));
        Case alone = make_case(operation_named("head_norms"), *s, alignment_of(device));
        for (size_t j = 0; j < turned.tensors[1].count; j++) turned.tensors[1].values[j] = j % 2 == 0;
        memcpy(alone.tensors[1].values, turned.tensors[0].values, alone.tensors[1].count * sizeof(double));
        memcpy(alone.tensors[0].values, turned.tensors[2].values, alone.tensors[0].count * sizeof(double));
        Results expected = run_case(&turned, device), got = run_case(&alone, device);
        check(!memcmp(got.bytes[0], expected.bytes[2], bytes_of(&alone.tensors[0], device->ops->storage)),
              "rows %ld, heads of %d: other norms than rope's", (long)s->rows, s->head_dim);
        free_results(&expected);
        free_results(&got);
        free_case(&turned);
        free_case(&alone);
    }
}

static const Sizes norm_sizes[] = {
    {.batch = 3, .rows = 19, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = ROPE_NORMS},
    {.batch = 2, .rows = 19, .heads = 9, .kv_heads = 3, .head_dim = 70, .variant = ROPE_NORMS},
    {.batch = 2, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = ROPE_NORMS},
};

void test_rope_norms(const char *where, const Devices *devices) {
    static const Operation operation = FORWARD(rope, ONE_ROUNDING, ALL(norm_sizes));
    OperationTest test = {&operation, devices};
    char *name = format_string("%s: rope_norms", where);
    char *alone = format_string("%s: rope_norms without rope", where);
    test_run(name, norms_are_of_what_is_stored, &test);
    test_run(alone, norms_alone_are_the_same, &test);
    free(name);
    free(alone);
}
