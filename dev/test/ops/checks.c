#include "dev/test/ops/case.h"

#include <stdlib.h>
#include <string.h>

char *label(const Case *c, const char *against, int tensor) {
    const Sizes *s = &c->sizes;
    return format_string(
        "%s against %s: %s at batch %ld, rows %ld, columns %ld, inner %ld, heads %d/%d x %d%s, "
        "levels %d, pieces %d, variant %d",
        c->operation->name, against, c->tensors[tensor].name, (long)s->batch, (long)s->rows, (long)s->columns,
        (long)s->inner, s->heads, s->kv_heads, s->head_dim, s->causal ? " causal" : "", s->levels, s->pieces,
        s->variant);
}

static double tolerance_of(Element element, double stored_tolerance, double accumulated_tolerance) {
    return element == STORED || element == FROM_STORED ? stored_tolerance
           : element == INT32                          ? 0
                                                       : accumulated_tolerance;
}

// Compares every result, `got`, with `expected`.
static void check_results(const Case *c, const char *against, double *const *got, double *const *expected,
                          double stored_tolerance, double accumulated_tolerance) {
    for (int i = 0; i < c->count; i++) {
        if (c->tensors[i].role == INPUT) continue;
        char *what = label(c, against, i);
        check_close(what, got[i], expected[i], c->tensors[i].count,
                    tolerance_of(c->tensors[i].element, stored_tolerance, accumulated_tolerance));
        free(what);
    }
}

static void check_same_bytes(const Case *c, const char *against, const Results *a, const Results *b,
                             StorageType storage) {
    for (int i = 0; i < c->count; i++) {
        char *what = label(c, against, i);
        check(!memcmp(a->bytes[i], b->bytes[i], bytes_of(&c->tensors[i], storage)), "%s: other bytes", what);
        free(what);
    }
}

void check_formula(const Case *c, Device *float64) {
    Results got = run_case(c, float64);
    double *expected[MAX_TENSORS] = {NULL};
    for (int i = 0; i < c->count; i++) {
        const Tensor *tensor = &c->tensors[i];
        expected[i] = host_allocate(tensor->count, sizeof(double), "a test tensor");
        if (tensor->values) memcpy(expected[i], tensor->values, tensor->count * sizeof(double));
    }
    c->operation->formula(c, expected);
    check_results(c, "formula", got.values, expected, 1e-12, 1e-12);
    free_results(&got);
    for (int i = 0; i < c->count; i++) free(expected[i]);
}

// The sum over the forward's results Y of the scalar product of Y and grad_Y, an input of the backward.
static double scalar_of(const Case *forward, const Case *backward, Device *float64) {
    Results results = run_case(forward, float64);
    double total = 0;
    for (int i = 0; i < backward->count; i++) {
        const Tensor *cotangent = &backward->tensors[i];
        if (cotangent->role != INPUT || strncmp(cotangent->name, "grad_", 5) != 0) continue;
        // grad_residual is the gradient of the residual stream, which is the norm's input x.
        const char *name = strcmp(cotangent->name, "grad_residual") ? cotangent->name + 5 : "x";
        const int result = find_tensor(forward, name);
        for (size_t j = 0; j < cotangent->count; j++)
            total += cotangent->values[j] * results.values[result][j];
    }
    free_results(&results);
    return total;
}

// Compares the float64 gradient grad_X with central differences of scalar_of along random directions in X.
static void check_gradient(Case *forward, const Case *backward, const Results *gradients, int index,
                           Device *float64) {
    enum { DIRECTIONS = 3 };
    const double epsilon = 1e-5;
    const Tensor *gradient = &backward->tensors[index];
    const Tensor *x = &forward->tensors[find_tensor(forward, gradient->name + 5)];
    double *start = host_allocate(x->count, sizeof(double), "a test tensor");
    double *direction = host_allocate(x->count, sizeof(double), "a test tensor");
    memcpy(start, x->values, x->count * sizeof(double));
    double analytic[DIRECTIONS] = {0}, numeric[DIRECTIONS];
    for (int d = 0; d < DIRECTIONS; d++) {
        random_fill(direction, x->count);
        for (size_t i = 0; i < x->count; i++) {
            const double prior = gradient->role == UPDATED ? gradient->values[i] : 0;
            analytic[d] += direction[i] * (gradients->values[index][i] - prior);
            x->values[i] = start[i] + epsilon * direction[i];
        }
        const double above = scalar_of(forward, backward, float64);
        for (size_t i = 0; i < x->count; i++) x->values[i] = start[i] - epsilon * direction[i];
        numeric[d] = (above - scalar_of(forward, backward, float64)) / (2 * epsilon);
        memcpy(x->values, start, x->count * sizeof(double));
    }
    char *what = label(backward, "differences", index);
    check_close(what, analytic, numeric, DIRECTIONS, 1e-7);
    free(what);
    free(direction);
    free(start);
}

Case join_forward(Case *backward, Device *float64) {
    Sizes sizes = backward->sizes;
    if (sizes.causal) sizes.keys = 0; // in attention_pieces, keys is where to cut: not for the forward
    Case forward = make_case(operation_named(backward->operation->forward), sizes, 1);
    Results results = run_case(&forward, float64);
    for (int i = 0; i < backward->count; i++) {
        const Tensor *to = &backward->tensors[i];
        const int from = to->role == INPUT ? find_tensor(&forward, to->name) : -1;
        if (from >= 0) memcpy(to->values, results.values[from], to->count * sizeof(double));
    }
    free_results(&results);
    return forward;
}

void check_gradients(Case *forward, const Case *backward, Device *float64) {
    Results gradients = run_case(backward, float64);
    for (int i = 0; i < backward->count; i++)
        if (backward->tensors[i].role != INPUT) check_gradient(forward, backward, &gradients, i, float64);
    free_results(&gradients);
}

void check_on_device(Case *c, const Devices *devices) {
    Device *device = devices->tested;
    const StorageType storage = device->ops->storage;
    const double stored_tolerance = storage == STORAGE_BFLOAT16 ? c->operation->tolerance : 1e-5;
    const double accumulated_tolerance = 1e-5;
    round_case(c, storage);
    Results got = run_case(c, device), again = run_case(c, device), exact = run_case(c, devices->float64);
    check_same_bytes(c, "a second run", &again, &got, storage);
    check_results(c, "float64", got.values, exact.values, stored_tolerance, accumulated_tolerance);
    if (devices->other_threads) {
        Results other = run_case(c, devices->other_threads);
        check_same_bytes(c, "other threads", &other, &got, storage);
        free_results(&other);
    } else {
        Results same_rounding = run_case(c, devices->bfloat16);
        check_results(c, "bfloat16", got.values, same_rounding.values, stored_tolerance,
                      accumulated_tolerance);
        free_results(&same_rounding);
    }
    free_results(&got);
    free_results(&again);
    free_results(&exact);
}
