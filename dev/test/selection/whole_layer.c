// The layer with its selection held fixed: transposes, causality, gradients.
#include "dev/test/selection/tests.h"

#include <stdlib.h>
#include <string.h>

static double dot(const double *a, const double *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

typedef void Map(const Layer *l, void *out, const void *in);

static void gather_map(const Layer *l, void *out, const void *in) {
    l->device->ops->gather.forward(out, in, l->layer.positions, &l->shape, l->device->stream);
}
static void gather_transposed(const Layer *l, void *out, const void *in) {
    l->device->ops->gather.backward(out, in, l->layer.positions, NULL, &l->shape, l->device->stream);
}
static void scatter_map(const Layer *l, void *out, const void *in) {
    l->device->ops->scatter.forward(out, in, NULL, l->layer.positions, &l->shape, l->device->stream);
}
static void scatter_transposed(const Layer *l, void *out, const void *in) {
    l->device->ops->scatter.backward(out, in, NULL, l->layer.positions, &l->shape, l->device->stream);
}

// <map(x), y> = <x, transposed(y)> for x in `in` and y in `out`, both memory of the layer. With y = x' mapped
// plus noise for the same x neither is near zero.
static void check_transposed(const Layer *l, const char *what, Map *map, Map *transposed, void *in,
                             size_t in_count, void *out, size_t out_count) {
    const StorageType storage = layer_storage(l);
    double *x = random_values(in_count), *noise = random_values(out_count);
    upload(l->device, in, storage, x, in_count);
    map(l, out, in);
    double *mapped = download(l->device, out, storage, out_count), *y = noise;
    for (size_t i = 0; i < out_count; i++) y[i] += mapped[i];
    upload(l->device, out, storage, y, out_count);
    free(y);
    y = download(l->device, out, storage, out_count); // as the device holds it
    transposed(l, in, out);
    double *back = download(l->device, in, storage, in_count);
    const double forth = dot(mapped, y, out_count), and_back = dot(x, back, in_count);
    check_close(what, &and_back, &forth, 1, rounding_of(storage));
    free(x);
    free(mapped);
    free(y);
    free(back);
}

void backwards_are_transposes(void *argument) {
    for (int64_t levels = 2; levels <= 5; levels++) {
        const LighthouseShape shape = random_shape(levels, levels < 4 ? 4 : 2);
        Layer l = random_layer(argument, &shape);
        check_transposed(&l, "gather", gather_map, gather_transposed, l.qkv, qkv_count(&shape),
                         l.layer.gathered, 3 * sub_out_count(&shape));
        check_transposed(&l, "scatter", scatter_map, scatter_transposed, l.layer.sub_out,
                         sub_out_count(&shape), l.out, out_count(&shape));
        layer_close(&l);
    }
}

// Sets the elements of all tokens after t of [batch, seq_len, width] to others, or to zero.
static void change_after(double *values, int64_t t, int64_t width, const LighthouseShape *shape,
                         bool to_zero) {
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t i = (t + 1) * width; i < shape->seq_len * width; i++) {
            double *value = &values[batch * shape->seq_len * width + i];
            *value = to_zero ? 0 : 2 - 3 * *value;
        }
}

// How many elements differ (in value) up to token t, and after it.
static void count_changes(const double *a, const double *b, int64_t t, int64_t width,
                          const LighthouseShape *shape, int64_t changes[2]) {
    changes[0] = changes[1] = 0;
    for (int64_t i = 0; i < shape->batch * shape->seq_len * width; i++)
        if (a[i] != b[i]) changes[i / width % shape->seq_len > t]++;
}

// With the selection held fixed: out[<= t] does not know of tokens after t, to the bit; and a gradient of
// out[<= t] reaches no token after t, and does not know of them either.
static void check_causality(const Layer *l, const double *qkv, const double *grad_out, int64_t t) {
    const LighthouseShape *shape = &l->shape;
    const int64_t qkv_width = (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    const int64_t out_width = shape->heads * shape->head_dim;
    const size_t qkv_bytes = qkv_count(shape) * sizeof(double), out_bytes = out_count(shape) * sizeof(double);
    double *other_qkv = memcpy(host_allocate(qkv_bytes, 1, "qkv"), qkv, qkv_bytes);
    double *early_grad = memcpy(host_allocate(out_bytes, 1, "grad_out"), grad_out, out_bytes);
    change_after(other_qkv, t, qkv_width, shape, false);
    change_after(early_grad, t, out_width, shape, true);
    double *out = run_forward(l, qkv, NULL), *grad = run_backward(l, early_grad, false);
    double *other_out = run_forward(l, other_qkv, NULL), *other_grad = run_backward(l, early_grad, false);
    int64_t changes[2];
    count_changes(out, other_out, t, out_width, shape, changes);
    check(changes[0] == 0, "%ld elements of out up to token %ld know of later ones", (long)changes[0],
          (long)t);
    check(changes[1] > 0, "nothing depends on the tokens after %ld", (long)t);
    count_changes(grad, other_grad, t, qkv_width, shape, changes);
    check(changes[0] == 0, "%ld elements of grad_qkv up to token %ld know of later tokens", (long)changes[0],
          (long)t);
    double *zeros = host_allocate(qkv_bytes, 1, "zeros");
    count_changes(grad, zeros, t, qkv_width, shape, changes);
    const bool one_is_complete = t + 1 >= covered_by(shape, shape->levels - 1); // of the coarsest entries
    check(changes[0] > 0 || !one_is_complete, "the gradient up to token %ld is zero", (long)t);
    check(changes[1] == 0, "%ld elements of grad_qkv after token %ld are not zero", (long)changes[1],
          (long)t);
    double *const all[] = {other_qkv, early_grad, out, grad, other_out, other_grad, zeros};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
}

void layer_is_causal(void *argument) {
    const LighthouseShape shapes[] = {shape_of(3, 4, 24, 8, 1, 768, 4, 2, 16),
                                      shape_of(4, 2, 16, 4, 2, 160, 2, 1, 8)};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        Layer l = random_layer(argument, &shapes[i]);
        double *qkv = random_values(qkv_count(&shapes[i])), *grad_out = random_values(out_count(&shapes[i]));
        const int64_t last = shapes[i].seq_len - 2, chunk = shapes[i].seq_len / shapes[i].chunks;
        const int64_t tokens[] = {0,
                                  covered_by(&shapes[i], shapes[i].levels - 1) - 1,
                                  chunk - 1,
                                  chunk,
                                  last,
                                  between(1, last),
                                  between(1, last)};
        for (size_t j = 0; j < COUNT_OF(tokens); j++) check_causality(&l, qkv, grad_out, tokens[j]);
        free(qkv);
        free(grad_out);
        layer_close(&l);
    }
}

// Float64 gradients against central differences along random directions.
static void check_layer_gradient(const LighthouseShape *shape, bool turned) {
    enum { DIRECTIONS = 3 };
    const double epsilon = 1e-5;
    const size_t count = qkv_count(shape);
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    Layer l = random_layer(float64, shape);
    double *qkv = random_values(count), *grad_out = random_values(out_count(shape));
    double *angles = random_angles(shape), *moved = host_allocate(count, sizeof(double), "qkv");
    free(run_forward(&l, qkv, turned ? angles : NULL));
    double *gradient = run_backward(&l, grad_out, turned), analytic[DIRECTIONS], numeric[DIRECTIONS];
    for (int d = 0; d < DIRECTIONS; d++) {
        double *direction = random_values(count), totals[2];
        for (int side = 0; side < 2; side++) {
            for (size_t i = 0; i < count; i++) moved[i] = qkv[i] + (side ? epsilon : -epsilon) * direction[i];
            double *out = run_forward(&l, moved, turned ? angles : NULL);
            totals[side] = dot(out, grad_out, out_count(shape));
            free(out);
        }
        analytic[d] = dot(gradient, direction, count);
        numeric[d] = (totals[1] - totals[0]) / (2 * epsilon);
        free(direction);
    }
    check_close("gradient against differences", analytic, numeric, DIRECTIONS, 1e-7);
    double *const all[] = {qkv, grad_out, angles, moved, gradient};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    layer_close(&l);
    float64->destroy(float64);
}

void layer_has_its_gradient(void *unused) {
    (void)unused;
    const LighthouseShape shapes[] = {
        shape_of(2, 2, 12, 4, 2, 96, 4, 2, 6),   shape_of(3, 4, 40, 8, 1, 640, 6, 2, 10),
        shape_of(2, 8, 16, 16, 1, 136, 2, 2, 6), shape_of(5, 2, 24, 8, 1, 384, 3, 1, 4),
        shape_of(4, 4, 8, 8, 1, 576, 2, 1, 6),   shape_of(3, 8, 16, 16, 1, 1088, 1, 1, 4),
    };
    for (size_t i = 0; i < COUNT_OF(shapes); i++) check_layer_gradient(&shapes[i], i % 2 == 1);
}
