// Every operation, described once in the table at the end of this file: the sizes to try it at, its tensors
// in the order of its arguments, how to call it, and either a formula for its results or the operation it is
// the backward of. From that description follow all checks:
//   - in float64, results equal the formula, and gradients equal central differences of the forward;
//   - results on the device under test equal those in float64 (and CUDA's those of the CPU in bfloat16) for
//     inputs that were rounded to the device's storage type first;
//   - running again, or with another number of CPU threads, gives the same bytes;
//   - what is written is written whole (it holds NaN before), inputs stay as they were, and so does the memory
//     before and after every tensor.
#include "test.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

// --- descriptions ---------------------------------------------------------------------------------------

typedef enum { INPUT, WRITTEN, UPDATED } Role;
// FROM_STORED: of the accumulator type, but computed from what has been rounded to the storage type.
typedef enum { STORED, ACCUMULATED, FROM_STORED, DOUBLE, INT32 } Element;

typedef struct {
    const char *name;
    Role role;
    Element element;
    size_t count;
    double *values; // what it holds before the operation
} Tensor;

// What an operation is tried at. Columns, inner and head_dim are rounded up to multiples of 8 on CUDA.
typedef struct {
    int64_t batch, rows, columns, inner;
    int64_t keys; // of attention that is not causal; 0: as many as rows
    int heads, kv_heads, head_dim;
    bool causal;
    int levels, log2_pool, tile, chunks; // of Lighthouse attention, whose sequence has `rows` tokens
    int pieces;                          // that it is in; 0: it is whole
    int variant;                         // which of the operation's ways to be called
} Sizes;

enum { MAX_TENSORS = 12, MAX_SIZES = 12, PIECES = 3 };

typedef struct Case Case;

typedef struct {
    const char *name;
    const char *forward; // the operation that this one is the backward of, or NULL
    void (*describe)(Case *c);
    void (*run)(const Case *c, const Ops *ops, void **at, void *workspace, Stream *stream);
    void (*formula)(const Case *c,
                    double **values); // results from inputs, in place; NULL if there is `forward`
    double tolerance;                 // of the bfloat16 results
    Sizes sizes[MAX_SIZES];
} Operation;

struct Case {
    const Operation *operation;
    Sizes sizes;
    AttentionShape attention[PIECES]; // of attention operations: of each call they make
    int attention_count;
    LighthouseShape lighthouse;
    Tensor tensors[MAX_TENSORS];
    int count;
};

// Adds a tensor of standard normal values to the case; what is only written has none.
static double *add(Case *c, const char *name, Role role, Element element, int64_t count) {
    Tensor *tensor = &c->tensors[c->count++];
    *tensor = (Tensor){name, role, element, (size_t)count, NULL};
    if (role == WRITTEN) return NULL;
    tensor->values = host_allocate(tensor->count, sizeof(double), "a test tensor");
    random_fill(tensor->values, tensor->count);
    return tensor->values;
}

static void add_tokens(Case *c, const char *name, int64_t count, int64_t vocab) {
    double *values = add(c, name, INPUT, INT32, count);
    for (int64_t i = 0; i < count; i++) values[i] = (double)random_below((uint64_t)vocab);
}

static int find(const Case *c, const char *name) {
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->tensors[i].name, name)) return i;
    return -1;
}

static Case make_case(const Operation *operation, Sizes sizes, int64_t alignment) {
    sizes.columns = divide_up(sizes.columns, alignment) * alignment;
    sizes.inner = divide_up(sizes.inner, alignment) * alignment;
    sizes.head_dim = (int)(divide_up(sizes.head_dim, alignment) * alignment);
    Case c = {.operation = operation, .sizes = sizes};
    operation->describe(&c);
    return c;
}

static void free_case(Case *c) {
    for (int i = 0; i < c->count; i++) free(c->tensors[i].values);
}

static StorageType type_of(Element element, StorageType storage) {
    return element == STORED ? storage : element == DOUBLE ? STORAGE_FLOAT64 : accumulator_type(storage);
}

static size_t bytes_of(const Tensor *tensor, StorageType storage) {
    size_t size =
        tensor->element == INT32 ? sizeof(int32_t) : storage_size(type_of(tensor->element, storage));
    return tensor->count * size;
}

// Rounds every input to what a device of this storage type can hold.
static void round_case(Case *c, StorageType storage) {
    for (int i = 0; i < c->count; i++) {
        Tensor *tensor = &c->tensors[i];
        if (!tensor->values || tensor->element == INT32) continue;
        StorageType type = type_of(tensor->element, storage);
        void *rounded = host_allocate(tensor->count, storage_size(type), "a test tensor");
        storage_from_double(rounded, type, tensor->values, tensor->count);
        storage_to_double(tensor->values, rounded, type, tensor->count);
        free(rounded);
    }
}

// --- running them ---------------------------------------------------------------------------------------

// What a run leaves of each tensor: its bytes on the device, and as doubles.
typedef struct {
    unsigned char *bytes[MAX_TENSORS];
    double *values[MAX_TENSORS];
} Results;

static void free_results(Results *results) {
    for (int i = 0; i < MAX_TENSORS; i++) {
        free(results->bytes[i]);
        free(results->values[i]);
    }
}

// Bytes of 0xff are NaN in every floating type; as an integer they are -1, which may be a result.
enum { GUARD = 256, GUARD_BYTE = 0xa5, POISON_BYTE = 0xff, INTEGER_POISON_BYTE = 0x7f };

// The tensor as the device holds it, between two guards.
static unsigned char *guarded_bytes(const Tensor *tensor, StorageType storage) {
    const size_t bytes = bytes_of(tensor, storage);
    unsigned char *host = host_allocate(bytes + 2 * GUARD, 1, "a test tensor");
    memset(host, GUARD_BYTE, bytes + 2 * GUARD);
    if (!tensor->values)
        memset(host + GUARD, tensor->element == INT32 ? INTEGER_POISON_BYTE : POISON_BYTE, bytes);
    else if (tensor->element == INT32)
        for (size_t i = 0; i < tensor->count; i++)
            ((int32_t *)(host + GUARD))[i] = (int32_t)tensor->values[i];
    else
        storage_from_double(host + GUARD, type_of(tensor->element, storage), tensor->values, tensor->count);
    return host;
}

static unsigned char *device_allocate(Device *device, size_t bytes) {
    unsigned char *memory = device->allocate(device, bytes);
    if (!memory) fatal("the test needs %zu bytes on %s", bytes, device->name);
    return memory;
}

// Takes the tensor back from the device and checks what may not have changed.
static void collect(Results *results, const Case *c, int index, Device *device, const void *memory,
                    const unsigned char *before) {
    const Tensor *tensor = &c->tensors[index];
    const size_t bytes = bytes_of(tensor, device->ops->storage);
    unsigned char *after = host_allocate(bytes + 2 * GUARD, 1, "a test tensor");
    device->download(device, after, memory, bytes + 2 * GUARD);
    check(!memcmp(after, before, GUARD), "%s: memory before %s was written", c->operation->name,
          tensor->name);
    check(!memcmp(after + GUARD + bytes, before + GUARD + bytes, GUARD), "%s: memory after %s was written",
          c->operation->name, tensor->name);
    if (tensor->role == INPUT)
        check(!memcmp(after + GUARD, before + GUARD, bytes), "%s: the input %s was written",
              c->operation->name, tensor->name);
    results->bytes[index] = host_allocate(bytes, 1, "a test tensor");
    memcpy(results->bytes[index], after + GUARD, bytes);
    results->values[index] = host_allocate(tensor->count, sizeof(double), "a test tensor");
    if (tensor->element == INT32)
        for (size_t i = 0; i < tensor->count; i++)
            results->values[index][i] = ((const int32_t *)results->bytes[index])[i];
    else
        storage_to_double(results->values[index], after + GUARD,
                          type_of(tensor->element, device->ops->storage), tensor->count);
    free(after);
}

static Results run_case(const Case *c, Device *device) {
    unsigned char *before[MAX_TENSORS], *memory[MAX_TENSORS];
    void *at[MAX_TENSORS] = {NULL}, *workspace = NULL;
    for (int i = 0; i < c->count; i++) {
        const size_t bytes = bytes_of(&c->tensors[i], device->ops->storage) + 2 * GUARD;
        before[i] = guarded_bytes(&c->tensors[i], device->ops->storage);
        memory[i] = device_allocate(device, bytes);
        device->upload(device, memory[i], before[i], bytes);
        at[i] = memory[i] + GUARD;
    }
    size_t workspace_bytes = 0;
    for (int i = 0; i < c->attention_count; i++) {
        const bool backward = c->operation->forward != NULL;
        size_t bytes = device->ops->attention.workspace(&c->attention[i], backward, device->stream);
        if (bytes > workspace_bytes) workspace_bytes = bytes;
    }
    if (workspace_bytes > 0) workspace = device_allocate(device, workspace_bytes);
    c->operation->run(c, device->ops, at, workspace, device->stream);
    device->synchronize(device);
    Results results = {0};
    for (int i = 0; i < c->count; i++) {
        collect(&results, c, i, device, memory[i], before[i]);
        device->release(device, memory[i]);
        free(before[i]);
    }
    if (workspace) device->release(device, workspace);
    return results;
}

// --- the checks -----------------------------------------------------------------------------------------

// What a check is about: operation, tensor, sizes.
static char *label(const Case *c, const char *against, int tensor) {
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

// `got` of every result against `expected`.
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

// The float64 results against the formula of the operation.
static void check_formula(const Case *c, Device *float64) {
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

// The sum over the forward's results Y of <grad_Y, Y>, for the cotangents that the backward was given.
static double scalar_of(const Case *forward, const Case *backward, Device *float64) {
    Results results = run_case(forward, float64);
    double total = 0;
    for (int i = 0; i < backward->count; i++) {
        const Tensor *cotangent = &backward->tensors[i];
        if (cotangent->role != INPUT || strncmp(cotangent->name, "grad_", 5) != 0) continue;
        // The residual stream that goes past a norm is the norm's x.
        const char *name = strcmp(cotangent->name, "grad_residual") ? cotangent->name + 5 : "x";
        const int result = find(forward, name);
        for (size_t j = 0; j < cotangent->count; j++)
            total += cotangent->values[j] * results.values[result][j];
    }
    free_results(&results);
    return total;
}

// The float64 gradient grad_X against central differences of the forward along random directions in X.
static void check_gradient(Case *forward, const Case *backward, const Results *gradients, int index,
                           Device *float64) {
    enum { DIRECTIONS = 3 };
    const double epsilon = 1e-5;
    const Tensor *gradient = &backward->tensors[index];
    const Tensor *x = &forward->tensors[find(forward, gradient->name + 5)];
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

static const Operation *operation_named(const char *name);

// The forward case that belongs to a backward one; the backward's inputs X, and Y where it wants results of
// the forward, are set to the forward's.
static Case join_forward(Case *backward, Device *float64) {
    Sizes sizes = backward->sizes;
    if (sizes.causal) sizes.keys = 0; // where it says where to cut
    Case forward = make_case(operation_named(backward->operation->forward), sizes, 1);
    Results results = run_case(&forward, float64);
    for (int i = 0; i < backward->count; i++) {
        const Tensor *to = &backward->tensors[i];
        const int from = to->role == INPUT ? find(&forward, to->name) : -1;
        if (from >= 0) memcpy(to->values, results.values[from], to->count * sizeof(double));
    }
    free_results(&results);
    return forward;
}

static void check_gradients(Case *forward, const Case *backward, Device *float64) {
    Results gradients = run_case(backward, float64);
    for (int i = 0; i < backward->count; i++)
        if (backward->tensors[i].role != INPUT) check_gradient(forward, backward, &gradients, i, float64);
    free_results(&gradients);
}

// The devices of a run of the tests: the one under test, and those it is compared with.
typedef struct {
    Device *tested, *float64, *bfloat16;
    Device *other_threads; // the tested device with another number of threads; NULL if that is no CPU
} Devices;

static void check_on_device(Case *c, const Devices *devices) {
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

// --- the operations: their tensors, how they are called, and what they should give ----------------------

// The function of an operation's name that calls it.
#define RUN(operation)                                                                                       \
    static void run_##operation(const Case *c, const Ops *ops, void **at,                                    \
                                void *workspace __attribute__((unused)), Stream *stream)

static void describe_embedding_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "out", WRITTEN, STORED, s->rows * s->columns);
    add(c, "weight", INPUT, STORED, s->inner * s->columns);
    add_tokens(c, "tokens", s->rows, s->inner);
}

RUN(embedding_forward) {
    ops->embedding.forward(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

static void formula_embedding_forward(const Case *c, double **v) {
    for (int64_t i = 0; i < c->sizes.rows; i++)
        for (int64_t j = 0; j < c->sizes.columns; j++)
            v[0][i * c->sizes.columns + j] = v[1][(int64_t)v[2][i] * c->sizes.columns + j];
}

static void describe_embedding_backward(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "grad_weight", UPDATED, ACCUMULATED, s->inner * s->columns);
    add(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add_tokens(c, "tokens", s->rows, s->inner);
}

RUN(embedding_backward) {
    ops->embedding.backward(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

static void describe_rmsnorm_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "out", WRITTEN, STORED, s->rows * s->columns);
    add(c, "rstd", WRITTEN, ACCUMULATED, s->rows);
    add(c, "x", INPUT, STORED, s->rows * s->columns);
    add(c, "weight", INPUT, STORED, s->columns);
}

static const double norm_epsilon = 1e-3; // large enough to show

RUN(rmsnorm_forward) {
    ops->rmsnorm.forward(at[0], at[1], at[2], at[3], c->sizes.rows, c->sizes.columns, norm_epsilon, stream);
}

static void formula_rmsnorm_forward(const Case *c, double **v) {
    const int64_t dim = c->sizes.columns;
    for (int64_t i = 0; i < c->sizes.rows; i++) {
        double squares = 0;
        for (int64_t j = 0; j < dim; j++) squares += v[2][i * dim + j] * v[2][i * dim + j];
        v[1][i] = 1 / sqrt(squares / (double)dim + norm_epsilon);
        for (int64_t j = 0; j < dim; j++) v[0][i * dim + j] = v[2][i * dim + j] * v[1][i] * v[3][j];
    }
}

// Variants: the residual's gradient stands elsewhere, or in grad_x already, or there is none.
enum { RESIDUAL_APART, RESIDUAL_IN_PLACE, RESIDUAL_NONE };

static void describe_rmsnorm_backward(Case *c) {
    const Sizes *s = &c->sizes;
    const int64_t count = s->rows * s->columns;
    add(c, "grad_x", s->variant == RESIDUAL_IN_PLACE ? UPDATED : WRITTEN, STORED, count);
    add(c, "grad_weight", UPDATED, ACCUMULATED, s->columns);
    add(c, "grad_out", INPUT, STORED, count);
    add(c, "x", INPUT, STORED, count);
    add(c, "weight", INPUT, STORED, s->columns);
    add(c, "rstd", INPUT, ACCUMULATED, s->rows);
    if (s->variant == RESIDUAL_APART) add(c, "grad_residual", INPUT, STORED, count);
}

RUN(rmsnorm_backward) {
    const void *residual = c->sizes.variant == RESIDUAL_APART      ? at[6]
                           : c->sizes.variant == RESIDUAL_IN_PLACE ? at[0]
                                                                   : NULL;
    ops->rmsnorm.backward(at[0], at[1], residual, at[2], at[3], at[4], at[5], c->sizes.rows, c->sizes.columns,
                          stream);
}

// Variants: nothing is added, or something that stands elsewhere, or what stands in out already.
enum { ADDEND_NONE, ADDEND_APART, ADDEND_IN_PLACE };

static void describe_linear_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "out", s->variant == ADDEND_IN_PLACE ? UPDATED : WRITTEN, STORED, s->rows * s->columns);
    add(c, "a", INPUT, STORED, s->rows * s->inner);
    add(c, "weight", INPUT, STORED, s->columns * s->inner);
    if (s->variant == ADDEND_APART) add(c, "addend", INPUT, STORED, s->rows * s->columns);
}

RUN(linear_forward) {
    const Sizes *s = &c->sizes;
    const void *addend = s->variant == ADDEND_APART ? at[3] : s->variant == ADDEND_IN_PLACE ? at[0] : NULL;
    ops->linear.forward(at[0], at[1], at[2], addend, s->rows, s->columns, s->inner, stream);
}

static void formula_linear_forward(const Case *c, double **v) {
    const Sizes *s = &c->sizes;
    for (int64_t i = 0; i < s->rows; i++)
        for (int64_t j = 0; j < s->columns; j++) {
            double *out = &v[0][i * s->columns + j];
            double sum = s->variant == ADDEND_APART      ? v[3][i * s->columns + j]
                         : s->variant == ADDEND_IN_PLACE ? *out
                                                         : 0;
            for (int64_t k = 0; k < s->inner; k++) sum += v[1][i * s->inner + k] * v[2][j * s->inner + k];
            *out = sum;
        }
}

static void describe_linear_backward_input(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "grad_a", WRITTEN, STORED, s->rows * s->inner);
    add(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add(c, "weight", INPUT, STORED, s->columns * s->inner);
}

RUN(linear_backward_input) {
    ops->linear.backward_input(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

static void describe_linear_backward_weight(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "grad_weight", UPDATED, ACCUMULATED, s->columns * s->inner);
    add(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add(c, "a", INPUT, STORED, s->rows * s->inner);
}

RUN(linear_backward_weight) {
    ops->linear.backward_weight(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

// Variants: forward, inverse, or forward with the norms, as part of rows that are longer. The first
// heads + kv_heads of heads + 2·kv_heads turn, as in a packed projection.
enum { ROPE_FORWARD, ROPE_INVERSE, ROPE_NORMS };
enum { LONGER = 5 }; // tokens that a row of norms, or of log-sum-exps, has more

static void add_angles(Case *c) {
    const int64_t count = c->sizes.rows * c->sizes.head_dim;
    double *angles = add(c, "angles", INPUT, ACCUMULATED, count);
    for (int64_t i = 0; i < count; i += 2) {
        const double angle = angles[i];
        angles[i] = cos(angle);
        angles[i + 1] = sin(angle);
    }
}

static void describe_rope(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "x", UPDATED, STORED, s->batch * s->rows * (s->heads + 2 * s->kv_heads) * s->head_dim);
    add_angles(c);
    if (s->variant == ROPE_NORMS)
        add(c, "norms", UPDATED, FROM_STORED, s->batch * (s->heads + s->kv_heads) * (s->rows + LONGER));
}

RUN(rope) {
    const Sizes *s = &c->sizes;
    ops->rope.rotate(at[0], s->variant == ROPE_NORMS ? at[2] : NULL, s->rows + LONGER, at[1], s->batch,
                     s->rows, s->heads + 2 * s->kv_heads, s->heads + s->kv_heads, s->head_dim,
                     s->variant == ROPE_INVERSE, stream);
}

static void turn(double *x, const double *angles, const Sizes *s, bool inverse) {
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

// norms[batch, heads + kv_heads, rows + LONGER] of the heads that x holds.
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

// Variants: every array by itself, or queries, keys and values packed in one [batch, seq_len, heads +
// 2·kv_heads, head_dim] and the log-sum-exp part of one of a longer sequence, or scores around 90, whose exp
// overflows a float.
enum { APART, PACKED, APART_LARGE_SCORES };

static AttentionStrides strides_of(int64_t seq_len, int64_t heads, int64_t head_dim) {
    return (AttentionStrides){
        .batch = seq_len * heads * head_dim, .token = heads * head_dim, .head = head_dim};
}

static void set_attention_shape(Case *c) {
    const Sizes *s = &c->sizes;
    const int64_t d = s->head_dim, all_heads = s->heads + 2 * s->kv_heads;
    const int64_t key_len = s->keys > 0 ? s->keys : s->rows;
    const bool packed = s->variant == PACKED;
    const AttentionStrides query =
        packed ? strides_of(s->rows, all_heads, d) : strides_of(s->rows, s->heads, d);
    const AttentionStrides key = packed ? query : strides_of(key_len, s->kv_heads, d);
    const int64_t logsumexp_len = s->rows + (packed ? LONGER : 0);
    c->attention_count = 1;
    c->attention[0] = (AttentionShape){.batch = s->batch,
                                       .query_len = s->rows,
                                       .key_len = key_len,
                                       .heads = s->heads,
                                       .kv_heads = s->kv_heads,
                                       .head_dim = s->head_dim,
                                       .causal = s->causal,
                                       .deterministic = true,
                                       .scale = 1 / sqrt((double)d),
                                       .query = query,
                                       .key = key,
                                       .value = key,
                                       .output = strides_of(s->rows, s->heads, d),
                                       .logsumexp = {s->heads * logsumexp_len, 1, logsumexp_len},
                                       .grad_query = query,
                                       .grad_key = key,
                                       .grad_value = key};
}

// query, key and value, or qkv, or their gradients.
static void add_query_key_value(Case *c, Role role, const char *const names[4]) {
    const Sizes *s = &c->sizes;
    const AttentionShape *shape = &c->attention[0];
    if (s->variant == PACKED) {
        add(c, names[3], role, STORED, s->batch * s->rows * (s->heads + 2 * s->kv_heads) * s->head_dim);
        return;
    }
    add(c, names[0], role, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add(c, names[1], role, STORED, s->batch * shape->key_len * s->kv_heads * s->head_dim);
    add(c, names[2], role, STORED, s->batch * shape->key_len * s->kv_heads * s->head_dim);
}

// Splits tensor `index` of a packed case into queries, keys and values, elements of `size` bytes; of another
// case those are the tensors themselves.
static void split_query_key_value(void *parts[3], const Case *c, void **at, int index, size_t size) {
    const Sizes *s = &c->sizes;
    const size_t key_offset = (size_t)(s->heads * s->head_dim) * size;
    const size_t value_offset = key_offset + (size_t)(s->kv_heads * s->head_dim) * size;
    const bool packed = s->variant == PACKED;
    parts[0] = at[index];
    parts[1] = packed ? (char *)at[index] + key_offset : at[index + 1];
    parts[2] = packed ? (char *)at[index] + value_offset : at[index + 2];
}

static const char *const query_key_value[4] = {"query", "key", "value", "qkv"};
static const char *const gradients_of_them[4] = {"grad_query", "grad_key", "grad_value", "grad_qkv"};

static void describe_attention_forward(Case *c) {
    const Sizes *s = &c->sizes;
    set_attention_shape(c);
    add(c, "out", WRITTEN, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add(c, "logsumexp", s->variant == PACKED ? UPDATED : WRITTEN, ACCUMULATED,
        s->batch * c->attention[0].logsumexp.batch);
    add_query_key_value(c, INPUT, query_key_value);
    if (s->variant != APART_LARGE_SCORES) return;
    for (int i = find(c, "query"); i <= find(c, "key"); i++)
        for (size_t j = 0; j < c->tensors[i].count; j += (size_t)s->head_dim) c->tensors[i].values[j] += 16;
}

RUN(attention_forward) {
    void *in[3];
    split_query_key_value(in, c, at, 2, storage_size(ops->storage));
    ops->attention.forward(at[0], at[1], in[0], in[1], in[2], &c->attention[0], workspace, stream);
}

static int64_t token_at(AttentionStrides strides, int64_t batch, int64_t token, int64_t head) {
    return batch * strides.batch + token * strides.token + head * strides.head;
}

// One query of one head: scores, softmax, weighted values.
static void attend(double *out, double *logsumexp, const double *query, const double *keys,
                   const double *values, const AttentionShape *shape, int64_t seen) {
    double *scores = host_allocate((size_t)seen, sizeof(double), "scores");
    double total = 0;
    for (int64_t j = 0; j < seen; j++) {
        double dot = 0;
        for (int64_t d = 0; d < shape->head_dim; d++) dot += query[d] * keys[j * shape->key.token + d];
        scores[j] = exp(shape->scale * dot);
        total += scores[j];
    }
    *logsumexp = log(total);
    for (int64_t d = 0; d < shape->head_dim; d++) {
        out[d] = 0;
        for (int64_t j = 0; j < seen; j++) out[d] += scores[j] / total * values[j * shape->value.token + d];
    }
    free(scores);
}

static void formula_attention_forward(const Case *c, double **v) {
    const AttentionShape *shape = &c->attention[0];
    void *in[3];
    split_query_key_value(in, c, (void **)v, 2, sizeof(double));
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->heads; head++)
            for (int64_t i = 0; i < shape->query_len; i++) {
                const int64_t kv_head = head / (shape->heads / shape->kv_heads);
                attend(v[0] + token_at(shape->output, batch, i, head),
                       v[1] + token_at(shape->logsumexp, batch, i, head),
                       (double *)in[0] + token_at(shape->query, batch, i, head),
                       (double *)in[1] + token_at(shape->key, batch, 0, kv_head),
                       (double *)in[2] + token_at(shape->value, batch, 0, kv_head), shape,
                       shape->causal ? i + 1 : shape->key_len);
            }
}

static void describe_attention_backward(Case *c) {
    const Sizes *s = &c->sizes;
    set_attention_shape(c);
    add(c, "grad_out", INPUT, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add(c, "out", INPUT, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add(c, "logsumexp", INPUT, ACCUMULATED, s->batch * c->attention[0].logsumexp.batch);
    add_query_key_value(c, WRITTEN, gradients_of_them);
    add_query_key_value(c, INPUT, query_key_value);
}

RUN(attention_backward) {
    void *grad[3], *in[3];
    split_query_key_value(grad, c, at, 3, storage_size(ops->storage));
    split_query_key_value(in, c, at, c->sizes.variant == PACKED ? 4 : 6, storage_size(ops->storage));
    ops->attention.backward(grad[0], grad[1], grad[2], at[0], in[0], in[1], in[2], at[1], at[2],
                            &c->attention[0], workspace, stream);
}

// Causal attention of `rows` tokens, cut after the first `keys` of them: both parts to themselves, which
// gives grad_query, grad_key and grad_value, and the later queries with the earlier keys, which gives the
// crossing ones. All with the log-sum-exp and the out of the whole.
static void describe_attention_pieces(Case *c) {
    const Sizes *s = &c->sizes;
    const int64_t cut = s->keys, rest = s->rows - s->keys;
    c->sizes.keys = 0;
    set_attention_shape(c);
    c->sizes.keys = cut;
    AttentionShape *pieces = c->attention;
    c->attention_count = PIECES;
    pieces[1] = pieces[2] = pieces[0];
    pieces[0].query_len = pieces[0].key_len = cut;
    pieces[1].query_len = pieces[1].key_len = rest;
    pieces[2].query_len = rest;
    pieces[2].key_len = cut;
    pieces[2].causal = false;
    pieces[2].grad_query = strides_of(rest, s->heads, s->head_dim);
    pieces[2].grad_key = pieces[2].grad_value = strides_of(cut, s->kv_heads, s->head_dim);

    const int64_t query_count = s->batch * s->rows * s->heads * s->head_dim;
    const int64_t key_count = s->batch * s->rows * s->kv_heads * s->head_dim;
    const int64_t crossing_key_count = s->batch * cut * s->kv_heads * s->head_dim;
    add(c, "grad_query", WRITTEN, STORED, query_count);
    add(c, "grad_key", WRITTEN, STORED, key_count);
    add(c, "grad_value", WRITTEN, STORED, key_count);
    add(c, "crossing grad_query", WRITTEN, STORED, s->batch * rest * s->heads * s->head_dim);
    add(c, "crossing grad_key", WRITTEN, STORED, crossing_key_count);
    add(c, "crossing grad_value", WRITTEN, STORED, crossing_key_count);
    add(c, "grad_out", INPUT, STORED, query_count);
    add(c, "query", INPUT, STORED, query_count);
    add(c, "key", INPUT, STORED, key_count);
    add(c, "value", INPUT, STORED, key_count);
    add(c, "out", INPUT, STORED, query_count);
    add(c, "logsumexp", INPUT, ACCUMULATED, s->batch * s->heads * s->rows);
}

RUN(attention_pieces) {
    const Sizes *s = &c->sizes;
    const AttentionShape *pieces = c->attention;
    const size_t size = storage_size(ops->storage);
    const size_t query_bytes = (size_t)(s->keys * s->heads * s->head_dim) * size;
    const size_t key_bytes = (size_t)(s->keys * s->kv_heads * s->head_dim) * size;
    // Where the later part begins in each tensor.
    char *later[MAX_TENSORS];
    for (int i = 0; i < c->count; i++) {
        const bool is_key = i == 1 || i == 2 || i == 8 || i == 9;
        later[i] = (char *)at[i] + (is_key ? key_bytes : query_bytes);
    }
    later[11] = (char *)at[11] + (size_t)s->keys * storage_size(accumulator_type(ops->storage));
    ops->attention.backward(at[0], at[1], at[2], at[6], at[7], at[8], at[9], at[10], at[11], &pieces[0],
                            workspace, stream);
    ops->attention.backward(later[0], later[1], later[2], later[6], later[7], later[8], later[9], later[10],
                            later[11], &pieces[1], workspace, stream);
    ops->attention.backward(at[3], at[4], at[5], later[6], later[7], at[8], at[9], later[10], later[11],
                            &pieces[2], workspace, stream);
}

// Variants: what is so far goes on, without gaps or as a part of larger arrays; or there is nothing so far.
enum { MERGE_DENSE, MERGE_STRIDED, MERGE_FIRST };

static void set_merge_shape(Case *c) {
    const Sizes *s = &c->sizes;
    const bool strided = s->variant == MERGE_STRIDED;
    const int64_t logsumexp_len = s->rows + (strided ? LONGER : 0);
    c->attention[0] = (AttentionShape){
        .batch = s->batch,
        .query_len = s->rows,
        .heads = s->heads,
        .head_dim = s->head_dim,
        .output = strides_of(s->rows, s->heads + (strided ? 2 * s->kv_heads : 0), s->head_dim),
        .logsumexp = {s->heads * logsumexp_len, 1, logsumexp_len}};
}

static void set_nan(double *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) values[i] = NAN;
}

// The log-sum-exps are around 90, whose exp overflows a float; some are -infinity, with a vector of NaN.
static void describe_attention_merge(Case *c) {
    const Sizes *s = &c->sizes;
    set_merge_shape(c);
    const AttentionShape *shape = &c->attention[0];
    const bool first = s->variant == MERGE_FIRST;
    const Role role = first ? WRITTEN : UPDATED;
    double *sum = add(c, "sum", role, ACCUMULATED, s->batch * shape->output.batch);
    double *logsumexp = add(c, "logsumexp", role, ACCUMULATED, s->batch * shape->logsumexp.batch);
    double *part = add(c, "part", INPUT, STORED, s->batch * s->rows * s->heads * s->head_dim);
    double *more = add(c, "part_logsumexp", INPUT, ACCUMULATED, s->batch * s->heads * s->rows);
    for (int64_t i = 0; i < s->batch * s->heads * s->rows; i++) {
        const int64_t batch = i / s->rows / s->heads, head = i / s->rows % s->heads, query = i % s->rows;
        const int64_t at = token_at(shape->output, batch, query, head);
        const int64_t packed = ((batch * s->rows + query) * s->heads + head) * s->head_dim;
        more[i] = 90 + 2 * more[i];
        if (first) continue;
        double *so_far = logsumexp + token_at(shape->logsumexp, batch, query, head);
        *so_far = 90 + 2 * *so_far;
        if (i % 5 == 1) more[i] = -INFINITY, set_nan(part + packed, s->head_dim);
        if (i % 5 == 3) *so_far = -INFINITY, set_nan(sum + at, s->head_dim);
    }
}

RUN(attention_merge) {
    ops->attention.merge(at[0], at[1], at[2], at[3], &c->attention[0], c->sizes.variant == MERGE_FIRST,
                         stream);
}

static void formula_attention_merge(const Case *c, double **v) {
    const AttentionShape *shape = &c->attention[0];
    const bool first = c->sizes.variant == MERGE_FIRST;
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->query_len; i++) {
        const int64_t batch = i / shape->query_len / shape->heads, query = i % shape->query_len;
        const int64_t head = i / shape->query_len % shape->heads;
        double *sum = v[0] + token_at(shape->output, batch, query, head);
        double *logsumexp = v[1] + token_at(shape->logsumexp, batch, query, head);
        const double *part =
            v[2] + ((batch * shape->query_len + query) * shape->heads + head) * shape->head_dim;
        const double before = first ? 0 : exp(*logsumexp), more = exp(v[3][i]);
        for (int64_t d = 0; d < shape->head_dim; d++)
            sum[d] = ((before > 0 ? before * sum[d] : 0) + (more > 0 ? more * part[d] : 0)) / (before + more);
        *logsumexp = log(before + more);
    }
}

// Attention to the first third of the keys and then to the rest, merged. The rest's own softmax is left, and
// so a result too.
static void describe_attention_merged(Case *c) {
    const Sizes *s = &c->sizes;
    set_attention_shape(c);
    c->attention_count = 2;
    c->attention[1] = c->attention[0];
    c->attention[0].key_len = s->keys / 3;
    c->attention[1].key_len = s->keys - s->keys / 3;
    for (int i = 0; i < 2; i++)
        c->attention[i].key = c->attention[i].value = strides_of(s->keys, s->kv_heads, s->head_dim);
    const int64_t query_count = s->batch * s->rows * s->heads * s->head_dim;
    const int64_t key_count = s->batch * s->keys * s->kv_heads * s->head_dim;
    add(c, "sum", WRITTEN, FROM_STORED, query_count);
    add(c, "logsumexp", WRITTEN, ACCUMULATED, s->batch * s->heads * s->rows);
    add(c, "part", WRITTEN, STORED, query_count);
    add(c, "part_logsumexp", WRITTEN, ACCUMULATED, s->batch * s->heads * s->rows);
    add(c, "query", INPUT, STORED, query_count);
    add(c, "key", INPUT, STORED, key_count);
    add(c, "value", INPUT, STORED, key_count);
}

RUN(attention_merged) {
    size_t offset = 0; // of the piece's keys
    for (int i = 0; i < 2; i++) {
        const AttentionShape *shape = &c->attention[i];
        ops->attention.forward(at[2], at[3], at[4], (char *)at[5] + offset, (char *)at[6] + offset, shape,
                               workspace, stream);
        ops->attention.merge(at[0], at[1], at[2], at[3], shape, i == 0, stream);
        offset += (size_t)(shape->key_len * shape->key.token) * storage_size(ops->storage);
    }
}

static void formula_attention_merged(const Case *c, double **v) {
    const AttentionShape *shape = &c->attention[1];
    const int64_t earlier = c->attention[0].key_len;
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->query_len; i++) {
        const int64_t batch = i / shape->query_len / shape->heads, query = i % shape->query_len;
        const int64_t head = i / shape->query_len % shape->heads;
        const int64_t kv_head = head / (shape->heads / shape->kv_heads);
        const int64_t out = token_at(shape->output, batch, query, head);
        const double *from = v[4] + token_at(shape->query, batch, query, head);
        for (int later = 0; later < 2; later++) {
            const int64_t key = token_at(shape->key, batch, later ? earlier : 0, kv_head);
            attend(v[2 * later] + out, v[2 * later + 1] + token_at(shape->logsumexp, batch, query, head),
                   from, v[5] + key, v[6] + key, shape, shape->key_len + (later ? 0 : earlier));
        }
    }
}

static void set_lighthouse_shape(Case *c) {
    const Sizes *s = &c->sizes;
    LighthouseShape *shape = &c->lighthouse;
    *shape = (LighthouseShape){.batch = s->batch,
                               .seq_len = s->rows,
                               .heads = s->heads,
                               .kv_heads = s->kv_heads,
                               .head_dim = s->head_dim,
                               .levels = s->levels,
                               .log2_pool = s->log2_pool,
                               .tile = s->tile,
                               .chunks = s->chunks,
                               .pieces = s->pieces > 0 ? s->pieces : 1};
    shape->pyramid = level_start(shape, s->levels);
    shape->entries =
        level_entries(shape, s->levels - 1) + (((s->levels - 1) * s->chunks * s->tile) << s->log2_pool);
}

// The scores of all levels.
static double *add_scores(Case *c, Role role) {
    return add(c, "scores", role, ACCUMULATED,
               c->sizes.batch * (c->sizes.heads + c->sizes.kv_heads) * c->lighthouse.pyramid);
}

static void describe_lighthouse_pool_scores(Case *c) {
    set_lighthouse_shape(c);
    double *scores = add_scores(c, UPDATED);
    for (size_t i = 0; i < c->tensors[0].count; i++)
        if ((int64_t)i % c->lighthouse.pyramid >= c->sizes.rows) scores[i] = NAN; // what will be written
}

RUN(lighthouse_pool_scores) {
    ops->selection.pool_scores(at[0], &c->lighthouse, stream);
}

static void formula_lighthouse_pool_scores(const Case *c, double **v) {
    const LighthouseShape *shape = &c->lighthouse;
    for (double *row = v[0]; row < v[0] + c->tensors[0].count; row += shape->pyramid)
        for (int level = 1; level < shape->levels; level++)
            for (int64_t i = 0; i < level_entries(shape, level); i++) {
                const int64_t covered = (int64_t)1 << (level * shape->log2_pool);
                double *score = row + level_start(shape, level) + i;
                *score = row[i * covered];
                for (int64_t t = i * covered; t < (i + 1) * covered; t++) *score = fmax(*score, row[t]);
            }
}

static void describe_lighthouse_select(Case *c) {
    set_lighthouse_shape(c);
    add(c, "positions", WRITTEN, INT32, c->sizes.batch * c->sizes.heads * c->lighthouse.pyramid);
    add_scores(c, INPUT);
}

RUN(lighthouse_select) {
    ops->selection.select(at[0], at[1], &c->lighthouse, stream);
}

// Of the entries [first, end) of a level with this mark, those that fewer than `wanted` others surpass get
// the new one.
static void mark_largest(int *marks, int mark, int new_mark, const double *scores, int64_t first, int64_t end,
                         int64_t wanted) {
    for (int64_t i = first; i < end; i++) {
        if (marks[i] != mark) continue;
        int64_t larger = 0;
        for (int64_t j = first; j < end; j++)
            if ((marks[j] == mark || marks[j] == new_mark) &&
                (scores[j] > scores[i] || (scores[j] == scores[i] && j < i)))
                larger++;
        if (larger < wanted) marks[i] = new_mark;
    }
}

enum { NO_CANDIDATE, CANDIDATE, PARENT_BY_QUERY, PARENT_BY_KEY };

// Numbers an entry and all below it in post-order.
static void walk(double *positions, const int *marks, int level, int64_t index, int64_t *next,
                 const LighthouseShape *shape) {
    const int64_t at = level_start(shape, level) + index, pool = (int64_t)1 << shape->log2_pool;
    if (marks[at] == PARENT_BY_QUERY || marks[at] == PARENT_BY_KEY)
        for (int64_t child = index * pool; child < (index + 1) * pool; child++)
            walk(positions, marks, level - 1, child, next, shape);
    positions[at] = (double)(*next)++;
}

// The positions of one query head from the scores of it and of its key head.
static void select_for_head(double *positions, const double *query_scores, const double *key_scores,
                            const LighthouseShape *shape) {
    int *marks = host_allocate((size_t)shape->pyramid, sizeof(int), "marks");
    for (int level = shape->levels - 1; level >= 0; level--) {
        const int64_t start = level_start(shape, level), entries = level_entries(shape, level);
        for (int64_t i = 0; i < entries; i++) {
            const int above = level + 1 < shape->levels ? marks[start + entries + (i >> shape->log2_pool)]
                                                        : PARENT_BY_QUERY;
            marks[start + i] = above >= PARENT_BY_QUERY ? CANDIDATE : NO_CANDIDATE;
        }
        const int64_t part = entries / shape->chunks;
        for (int64_t first = 0; level > 0 && first < entries; first += part) {
            mark_largest(marks + start, CANDIDATE, PARENT_BY_QUERY, query_scores + start, first, first + part,
                         shape->tile / 2);
            mark_largest(marks + start, CANDIDATE, PARENT_BY_KEY, key_scores + start, first, first + part,
                         shape->tile / 2);
        }
    }
    for (int64_t i = 0; i < shape->pyramid; i++) positions[i] = -1;
    int64_t next = 0;
    for (int64_t i = 0; i < level_entries(shape, shape->levels - 1); i++)
        walk(positions, marks, shape->levels - 1, i, &next, shape);
    free(marks);
}

static void select_by_scores(double *positions, const double *scores, const LighthouseShape *shape) {
    for (int64_t i = 0; i < shape->batch * shape->heads; i++) {
        const int64_t head = i % shape->heads, kv_head = head / (shape->heads / shape->kv_heads);
        const double *rows = scores + i / shape->heads * (shape->heads + shape->kv_heads) * shape->pyramid;
        select_for_head(positions + i * shape->pyramid, rows + head * shape->pyramid,
                        rows + (shape->heads + kv_head) * shape->pyramid, shape);
    }
}

static void formula_lighthouse_select(const Case *c, double **v) {
    select_by_scores(v[0], v[1], &c->lighthouse);
}

// A selection by random scores, which every device is given.
static void add_positions(Case *c) {
    const LighthouseShape *shape = &c->lighthouse;
    double *positions = add(c, "positions", INPUT, INT32, shape->batch * shape->heads * shape->pyramid);
    const size_t count = (size_t)(shape->batch * (shape->heads + shape->kv_heads) * shape->pyramid);
    double *scores = host_allocate(count, sizeof(double), "scores");
    random_fill(scores, count);
    select_by_scores(positions, scores, shape);
    free(scores);
}

// Variants: as it is, or of queries and keys that are turned first, so that the backward turns back.
enum { GATHER_PLAIN, GATHER_TURNED };

static int64_t qkv_count(const LighthouseShape *shape) {
    return shape->batch * shape->seq_len * (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
}
static int64_t gathered_count(const LighthouseShape *shape) {
    return shape->batch * shape->entries * 3 * shape->heads * shape->head_dim;
}

static void describe_lighthouse_gather(Case *c) {
    set_lighthouse_shape(c);
    const bool turned = c->sizes.variant == GATHER_TURNED;
    add(c, "gathered", WRITTEN, STORED, gathered_count(&c->lighthouse));
    add(c, "qkv", turned ? UPDATED : INPUT, STORED, qkv_count(&c->lighthouse));
    add_positions(c);
    if (turned) add_angles(c);
}

RUN(lighthouse_gather) {
    const Sizes *s = &c->sizes;
    if (s->variant == GATHER_TURNED)
        ops->rope.rotate(at[1], NULL, 0, at[3], s->batch, s->rows, s->heads + 2 * s->kv_heads,
                         s->heads + s->kv_heads, s->head_dim, false, stream);
    ops->gather.forward(at[0], at[1], at[2], &c->lighthouse, stream);
}

static void formula_lighthouse_gather(const Case *c, double **v) {
    const LighthouseShape *shape = &c->lighthouse;
    const int64_t head_dim = shape->head_dim, width = shape->heads + 2 * shape->kv_heads;
    if (c->sizes.variant == GATHER_TURNED) turn(v[1], v[3], &c->sizes, false);
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->pyramid; i++) {
        if (v[2][i] < 0) continue;
        const int64_t batch = i / shape->pyramid / shape->heads, head = i / shape->pyramid % shape->heads;
        int64_t index = i % shape->pyramid, covered = 1;
        for (; index >= shape->seq_len / covered; covered <<= shape->log2_pool)
            index -= shape->seq_len / covered;
        for (int64_t j = 0; j < 3 * head_dim; j++) {
            const int64_t part = j / head_dim, kv_head = head / (shape->heads / shape->kv_heads);
            const int64_t from = part == 0 ? head : shape->heads + (part - 1) * shape->kv_heads + kv_head;
            const int64_t row = batch * shape->entries + (int64_t)v[2][i];
            double mean = 0;
            for (int64_t t = index * covered; t < (index + 1) * covered; t++)
                mean += v[1][((batch * shape->seq_len + t) * width + from) * head_dim + j % head_dim] /
                        (double)covered;
            v[0][((row * 3 + part) * shape->heads + head) * head_dim + j % head_dim] = mean;
        }
    }
}

static void describe_lighthouse_gather_backward(Case *c) {
    set_lighthouse_shape(c);
    add(c, "grad_qkv", WRITTEN, STORED, qkv_count(&c->lighthouse));
    add(c, "grad_gathered", INPUT, STORED, gathered_count(&c->lighthouse));
    add_positions(c);
    if (c->sizes.variant == GATHER_TURNED) add_angles(c);
}

RUN(lighthouse_gather_backward) {
    ops->gather.backward(at[0], at[1], at[2], c->sizes.variant == GATHER_TURNED ? at[3] : NULL,
                         &c->lighthouse, stream);
}

// Of a sequence in pieces, variants: the pieces before give something, and those after hand something back,
// or not.
enum { HALO_GIVEN, HALO_NONE };

static bool has_halo(const Case *c) {
    return c->sizes.pieces > 0 && c->sizes.variant == HALO_GIVEN;
}

static int64_t halo_count(const LighthouseShape *shape) {
    return shape->pieces * shape->batch * (shape->levels - 1) * shape->heads * shape->head_dim;
}

// With halos scatter is also lighthouse_halo: `before` is what the pieces before give, `halo` what these do.
static void describe_lighthouse_scatter(Case *c) {
    set_lighthouse_shape(c);
    const int64_t width = c->sizes.batch * c->sizes.heads * c->sizes.head_dim;
    add(c, "out", WRITTEN, STORED, c->lighthouse.seq_len * width);
    add(c, "sub_out", INPUT, STORED, c->lighthouse.entries * width);
    add_positions(c);
    if (!has_halo(c)) return;
    add(c, "halo", WRITTEN, STORED, halo_count(&c->lighthouse));
    add(c, "before", INPUT, STORED, halo_count(&c->lighthouse));
}

RUN(lighthouse_scatter) {
    ops->scatter.forward(at[0], at[1], has_halo(c) ? at[4] : NULL, at[2], &c->lighthouse, stream);
    if (has_halo(c)) ops->scatter.halo(at[3], at[1], at[2], &c->lighthouse, stream);
}

static double *halo_at(double *halo, int64_t piece, int64_t batch, int level, int64_t head,
                       const LighthouseShape *shape) {
    const int64_t row = (piece * shape->batch + batch) * (shape->levels - 1) + level - 1;
    return halo + (row * shape->heads + head) * shape->head_dim;
}

// Entry by entry, to the tokens it is for.
static void formula_lighthouse_scatter(const Case *c, double **v) {
    const LighthouseShape *shape = &c->lighthouse;
    const int64_t head_dim = shape->head_dim, piece_len = shape->seq_len / shape->pieces;
    memset(v[0], 0, c->tensors[0].count * sizeof(double));
    if (has_halo(c)) memset(v[3], 0, c->tensors[3].count * sizeof(double));
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->pyramid; i++) {
        const int64_t batch = i / shape->pyramid / shape->heads, head = i / shape->pyramid % shape->heads;
        int64_t index = i % shape->pyramid, covered = 1;
        int level = 0;
        for (; index >= shape->seq_len / covered; covered <<= shape->log2_pool, level++)
            index -= shape->seq_len / covered;
        const int64_t first = (index + 1) * covered - 1, piece = first / piece_len;
        const int64_t piece_end = (piece + 1) * piece_len;
        const bool is_last = first == piece_end - 1 && level > 0, selected = v[2][i] >= 0;
        const double *from =
            v[1] + ((batch * shape->entries + (int64_t)v[2][i]) * shape->heads + head) * head_dim;
        for (int64_t d = 0; d < head_dim; d++) {
            double *out = v[0] + (batch * shape->seq_len * shape->heads + head) * head_dim + d;
            for (int64_t t = first; t < first + covered && t < piece_end && selected; t++)
                out[t * shape->heads * head_dim] += from[d];
            if (!is_last || !has_halo(c)) continue;
            if (selected) halo_at(v[3], piece, batch, level, head, shape)[d] = from[d];
            for (int64_t t = piece * piece_len; t < piece * piece_len + covered - 1; t++)
                out[t * shape->heads * head_dim] += halo_at(v[4], piece, batch, level, head, shape)[d];
        }
    }
}

static void describe_lighthouse_scatter_backward(Case *c) {
    set_lighthouse_shape(c);
    const int64_t width = c->sizes.batch * c->sizes.heads * c->sizes.head_dim;
    add(c, "grad_sub_out", WRITTEN, STORED, c->lighthouse.entries * width);
    add(c, "grad_out", INPUT, STORED, c->lighthouse.seq_len * width);
    add_positions(c);
    if (!has_halo(c)) return;
    add(c, "grad_halo", INPUT, ACCUMULATED, halo_count(&c->lighthouse));
    add(c, "grad_before", WRITTEN, ACCUMULATED, halo_count(&c->lighthouse));
}

RUN(lighthouse_scatter_backward) {
    ops->scatter.backward(at[0], at[1], has_halo(c) ? at[3] : NULL, at[2], &c->lighthouse, stream);
    if (has_halo(c)) ops->scatter.halo_backward(at[4], at[1], &c->lighthouse, stream);
}

static void describe_swiglu_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "out", WRITTEN, STORED, s->rows * s->columns);
    add(c, "gate_up", INPUT, STORED, s->rows * 2 * s->columns);
}

RUN(swiglu_forward) {
    ops->swiglu.forward(at[0], at[1], c->sizes.rows, c->sizes.columns, stream);
}

static void formula_swiglu_forward(const Case *c, double **v) {
    const int64_t dim = c->sizes.columns;
    for (int64_t i = 0; i < c->sizes.rows * dim; i++) {
        const double gate = v[1][i / dim * 2 * dim + i % dim], up = v[1][i / dim * 2 * dim + dim + i % dim];
        v[0][i] = gate / (1 + exp(-gate)) * up;
    }
}

static void describe_swiglu_backward(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "grad_gate_up", WRITTEN, STORED, s->rows * 2 * s->columns);
    add(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add(c, "gate_up", INPUT, STORED, s->rows * 2 * s->columns);
}

RUN(swiglu_backward) {
    ops->swiglu.backward(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, stream);
}

// Variants: the losses alone, or the gradient too, scaled by -0.37.
enum { LOSS_ALONE, LOSS_AND_GRADIENT };
static const double gradient_scale = -0.37;

static void describe_cross_entropy(Case *c) {
    const Sizes *s = &c->sizes;
    add(c, "losses", WRITTEN, ACCUMULATED, s->rows);
    double *logits =
        add(c, "logits", s->variant == LOSS_ALONE ? INPUT : UPDATED, STORED, s->rows * s->columns);
    for (int64_t i = 0; i < s->rows * s->columns; i++)
        logits[i] = 2 * logits[i] + 100; // exp(100) overflows a float
    add_tokens(c, "targets", s->rows, s->columns);
}

RUN(cross_entropy) {
    ops->loss.cross_entropy(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns,
                            c->sizes.variant == LOSS_ALONE ? 0 : gradient_scale, stream);
}

static void formula_cross_entropy(const Case *c, double **v) {
    const int64_t vocab = c->sizes.columns;
    for (int64_t i = 0; i < c->sizes.rows; i++) {
        double *logits = v[1] + i * vocab, total = 0;
        const int64_t target = (int64_t)v[2][i];
        for (int64_t j = 0; j < vocab; j++) total += exp(logits[j]);
        v[0][i] = log(total) - logits[target];
        if (c->sizes.variant == LOSS_ALONE) continue;
        for (int64_t j = 0; j < vocab; j++)
            logits[j] = gradient_scale * (exp(logits[j]) / total - (j == target ? 1 : 0));
    }
}

static void describe_sum(Case *c) {
    add(c, "out", WRITTEN, DOUBLE, 1);
    double *x = add(c, "x", INPUT, ACCUMULATED, c->sizes.columns);
    for (int64_t i = 0; i < c->sizes.columns; i++) x[i] += 1; // so that the sum is far from zero
}

RUN(sum) {
    ops->reduce.sum(at[0], at[1], c->sizes.columns, stream);
}

static void formula_sum(const Case *c, double **v) {
    v[0][0] = 0;
    for (int64_t i = 0; i < c->sizes.columns; i++) v[0][0] += v[1][i];
}

static void describe_sum_of_squares(Case *c) {
    describe_sum(c);
}

RUN(sum_of_squares) {
    ops->reduce.sum_of_squares(at[0], at[1], c->sizes.columns, stream);
}

static void formula_sum_of_squares(const Case *c, double **v) {
    v[0][0] = 0;
    for (int64_t i = 0; i < c->sizes.columns; i++) v[0][0] += v[1][i] * v[1][i];
}

// Variants: rows of `inner` elements, of which `columns` are taken, on CUDA all multiples of 8; or none is
// one.
enum { BLOCK_WHOLE, BLOCK_ODD };

typedef struct {
    int64_t rows, columns, out_stride, in_stride;
} RowBlock;

static RowBlock block_of(const Case *c) {
    const Sizes *s = &c->sizes;
    if (s->variant == BLOCK_ODD) return (RowBlock){s->rows, s->columns - 3, s->inner + 1, s->inner + 5};
    return (RowBlock){s->rows, s->columns, s->inner, s->inner + 8};
}

static void describe_block(Case *c, Element out, Element in) {
    const RowBlock block = block_of(c);
    add(c, "out", UPDATED, out, block.rows * block.out_stride); // what is between the rows stays
    add(c, "in", INPUT, in, block.rows * block.in_stride);
}

// Element i of the block's rows in each array, in order.
static int64_t out_index(const RowBlock *block, int64_t i) {
    return i / block->columns * block->out_stride + i % block->columns;
}
static int64_t in_index(const RowBlock *block, int64_t i) {
    return i / block->columns * block->in_stride + i % block->columns;
}

static void describe_accumulate_rows(Case *c) {
    describe_block(c, ACCUMULATED, STORED);
}

RUN(accumulate_rows) {
    const RowBlock b = block_of(c);
    ops->convert.accumulate_rows(at[0], b.out_stride, at[1], b.in_stride, b.rows, b.columns, stream);
}

static void formula_accumulate_rows(const Case *c, double **v) {
    const RowBlock b = block_of(c);
    for (int64_t i = 0; i < b.rows * b.columns; i++) v[0][out_index(&b, i)] += v[1][in_index(&b, i)];
}

static void describe_copy_rows(Case *c) {
    describe_block(c, STORED, STORED);
}

RUN(copy_rows) {
    const RowBlock b = block_of(c);
    ops->convert.copy_rows(at[0], b.out_stride, at[1], b.in_stride, b.rows, b.columns, stream);
}

static void formula_copy_rows(const Case *c, double **v) {
    const RowBlock b = block_of(c);
    for (int64_t i = 0; i < b.rows * b.columns; i++) v[0][out_index(&b, i)] = v[1][in_index(&b, i)];
}

static void describe_round_rows(Case *c) {
    describe_block(c, STORED, ACCUMULATED);
}

RUN(round_rows) {
    const RowBlock b = block_of(c);
    ops->convert.round_rows(at[0], b.out_stride, at[1], b.in_stride, b.rows, b.columns, stream);
}

static void formula_round_rows(const Case *c, double **v) {
    formula_copy_rows(c, v);
}

static void describe_round_to_storage(Case *c) {
    add(c, "out", WRITTEN, STORED, c->sizes.columns);
    add(c, "in", INPUT, ACCUMULATED, c->sizes.columns);
}

RUN(round_to_storage) {
    ops->convert.round_to_storage(at[0], at[1], c->sizes.columns, stream);
}

static void formula_round_to_storage(const Case *c, double **v) {
    memcpy(v[0], v[1], (size_t)c->sizes.columns * sizeof(double));
}

static const AdamwStep adamw_step = {.step = 3,
                                     .learning_rate = 0.1,
                                     .beta1 = 0.9,
                                     .beta2 = 0.95,
                                     .epsilon = 1e-2,
                                     .weight_decay = 0.3,
                                     .gradient_scale = 0.7};

static void describe_adamw(Case *c) {
    const int64_t count = c->sizes.columns;
    add(c, "weights", WRITTEN, STORED, count);
    add(c, "master", UPDATED, ACCUMULATED, count);
    add(c, "m", UPDATED, ACCUMULATED, count);
    double *v = add(c, "v", UPDATED, ACCUMULATED, count);
    for (int64_t i = 0; i < count; i++) v[i] *= v[i];
    add(c, "grad", INPUT, ACCUMULATED, count);
}

RUN(adamw) {
    ops->optimizer.adamw(at[0], at[1], at[2], at[3], at[4], c->sizes.columns, &adamw_step, stream);
}

static void formula_adamw(const Case *c, double **v) {
    const AdamwStep *u = &adamw_step;
    for (int64_t i = 0; i < c->sizes.columns; i++) {
        const double g = u->gradient_scale * v[4][i];
        v[2][i] = u->beta1 * v[2][i] + (1 - u->beta1) * g;
        v[3][i] = u->beta2 * v[3][i] + (1 - u->beta2) * g * g;
        const double m_hat = v[2][i] / (1 - pow(u->beta1, (double)u->step));
        const double v_hat = v[3][i] / (1 - pow(u->beta2, (double)u->step));
        v[1][i] -= u->learning_rate * (m_hat / (sqrt(v_hat) + u->epsilon) + u->weight_decay * v[1][i]);
        v[0][i] = v[1][i];
    }
}

// --- the table ------------------------------------------------------------------------------------------

// Tolerances of what bfloat16 stores: one rounding moves a value by at most 2^-9 of it.
#define ONE_ROUNDING 4e-3
#define ATTENTION    1e-2 // where the probabilities may have been rounded too

// clang-format off
#define EMBEDDING_SIZES {                                                                                          \
    {.rows = 1, .columns = 5, .inner = 3},                                                                         \
    {.rows = 37, .columns = 33, .inner = 11},                                                                      \
    {.rows = 300, .columns = 130, .inner = 1029}}
#define NORM_SIZES {                                                                                               \
    {.rows = 1, .columns = 3, .variant = RESIDUAL_NONE},                                                           \
    {.rows = 19, .columns = 37, .variant = RESIDUAL_APART},                                                        \
    {.rows = 5, .columns = 130, .variant = RESIDUAL_IN_PLACE},                                                     \
    {.rows = 140, .columns = 1030, .variant = RESIDUAL_APART}}
#define LINEAR_SIZES(variants) {                                                                                   \
    {.rows = 1, .columns = 3, .inner = 5, .variant = 0},                                                           \
    {.rows = 7, .columns = 1, .inner = 13, .variant = 1 % variants},                                               \
    {.rows = 33, .columns = 70, .inner = 21, .variant = 2 % variants},                                             \
    {.rows = 300, .columns = 257, .inner = 130, .variant = 1 % variants},                                          \
    {.rows = 131, .columns = 61, .inner = 1030, .variant = 2 % variants},                                          \
    {.rows = 1030, .columns = 130, .inner = 45, .variant = 0},                                                     \
    {.rows = 67, .columns = 4101, .inner = 33, .variant = 1 % variants}}
#define ROPE_SIZES {                                                                                               \
    {.batch = 1, .rows = 1, .heads = 1, .kv_heads = 1, .head_dim = 2, .variant = ROPE_FORWARD},                    \
    {.batch = 3, .rows = 19, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = ROPE_FORWARD},                   \
    {.batch = 3, .rows = 19, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = ROPE_NORMS},                     \
    {.batch = 2, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = ROPE_NORMS},                  \
    {.batch = 2, .rows = 19, .heads = 3, .kv_heads = 3, .head_dim = 70, .variant = ROPE_INVERSE},                  \
    {.batch = 2, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = ROPE_INVERSE}}
#define ATTENTION_SIZES                                                                                            \
    {.batch = 1, .rows = 1, .keys = 9, .heads = 1, .kv_heads = 1, .head_dim = 3, .variant = APART},                \
    {.batch = 2, .rows = 1, .keys = 70, .heads = 4, .kv_heads = 2, .head_dim = 256, .variant = APART},             \
    {.batch = 2, .rows = 7, .heads = 2, .kv_heads = 2, .head_dim = 5, .causal = true, .variant = PACKED},          \
    {.batch = 2, .rows = 65, .heads = 4, .kv_heads = 2, .head_dim = 8, .causal = true, .variant = APART},          \
    {.batch = 1, .rows = 70, .keys = 131, .heads = 6, .kv_heads = 2, .head_dim = 22, .variant = APART},            \
    {.batch = 2, .rows = 129, .heads = 3, .kv_heads = 1, .head_dim = 64, .variant = PACKED},                       \
    {.batch = 1, .rows = 257, .heads = 4, .kv_heads = 2, .head_dim = 128, .causal = true, .variant = PACKED},      \
    {.batch = 1, .rows = 384, .heads = 2, .kv_heads = 1, .head_dim = 96, .causal = true, .variant = APART},        \
    {.batch = 1, .rows = 1000, .heads = 2, .kv_heads = 1, .head_dim = 64, .causal = true, .variant = PACKED}
#define MERGE_SIZES {                                                                                              \
    {.batch = 1, .rows = 1, .heads = 1, .kv_heads = 1, .head_dim = 3, .variant = MERGE_DENSE},                     \
    {.batch = 2, .rows = 37, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = MERGE_STRIDED},                  \
    {.batch = 2, .rows = 65, .heads = 3, .kv_heads = 3, .head_dim = 22, .variant = MERGE_FIRST},                   \
    {.batch = 3, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = MERGE_STRIDED},               \
    {.batch = 1, .rows = 131, .heads = 5, .kv_heads = 1, .head_dim = 96, .variant = MERGE_DENSE},                  \
    {.batch = 1, .rows = 70, .heads = 2, .kv_heads = 1, .head_dim = 200, .variant = MERGE_FIRST},                  \
    {.batch = 1, .rows = 19, .heads = 2, .kv_heads = 1, .head_dim = 256, .variant = MERGE_STRIDED}}
#define LIGHTHOUSE_SIZES {LIGHTHOUSE_WHOLE}
#define SCATTER_SIZES {LIGHTHOUSE_WHOLE, LIGHTHOUSE_PIECES}
#define LIGHTHOUSE_WHOLE                                                                                         \
    {.batch = 1, .rows = 16, .heads = 1, .kv_heads = 1, .head_dim = 2,                                             \
     .levels = 2, .log2_pool = 1, .tile = 4, .chunks = 1, .variant = GATHER_PLAIN},                                \
    {.batch = 2, .rows = 168, .heads = 4, .kv_heads = 2, .head_dim = 6,                                            \
     .levels = 3, .log2_pool = 1, .tile = 4, .chunks = 3, .variant = GATHER_TURNED},                               \
    {.batch = 2, .rows = 640, .heads = 3, .kv_heads = 3, .head_dim = 22,                                           \
     .levels = 2, .log2_pool = 3, .tile = 16, .chunks = 5, .variant = GATHER_PLAIN},                               \
    {.batch = 1, .rows = 1152, .heads = 6, .kv_heads = 2, .head_dim = 128,                                         \
     .levels = 4, .log2_pool = 1, .tile = 6, .chunks = 9, .variant = GATHER_TURNED},                               \
    {.batch = 1, .rows = 3072, .heads = 2, .kv_heads = 1, .head_dim = 64,                                          \
     .levels = 3, .log2_pool = 3, .tile = 16, .chunks = 3, .variant = GATHER_PLAIN},                               \
    {.batch = 3, .rows = 2560, .heads = 2, .kv_heads = 2, .head_dim = 8,                                           \
     .levels = 5, .log2_pool = 2, .tile = 10, .chunks = 1, .variant = GATHER_TURNED}
#define LIGHTHOUSE_PIECES                                                                                          \
    {.batch = 2, .rows = 20, .heads = 2, .kv_heads = 1, .head_dim = 6,                                             \
     .levels = 2, .log2_pool = 1, .tile = 4, .chunks = 2, .pieces = 2, .variant = HALO_GIVEN},                     \
    {.batch = 2, .rows = 120, .heads = 4, .kv_heads = 2, .head_dim = 22,                                           \
     .levels = 3, .log2_pool = 1, .tile = 4, .chunks = 6, .pieces = 2, .variant = HALO_NONE},                      \
    {.batch = 1, .rows = 1224, .heads = 3, .kv_heads = 3, .head_dim = 22,                                          \
     .levels = 2, .log2_pool = 3, .tile = 16, .chunks = 9, .pieces = 3, .variant = HALO_GIVEN},                    \
    {.batch = 3, .rows = 112, .heads = 6, .kv_heads = 2, .head_dim = 64,                                           \
     .levels = 4, .log2_pool = 1, .tile = 6, .chunks = 2, .pieces = 2, .variant = HALO_GIVEN},                     \
    {.batch = 1, .rows = 576, .heads = 2, .kv_heads = 1, .head_dim = 128,                                          \
     .levels = 3, .log2_pool = 2, .tile = 8, .chunks = 4, .pieces = 4, .variant = HALO_GIVEN},                     \
    {.batch = 2, .rows = 5120, .heads = 2, .kv_heads = 2, .head_dim = 8,                                           \
     .levels = 5, .log2_pool = 2, .tile = 10, .chunks = 2, .pieces = 2, .variant = HALO_GIVEN}
#define SWIGLU_SIZES {                                                                                             \
    {.rows = 1, .columns = 1},                                                                                     \
    {.rows = 37, .columns = 21},                                                                                   \
    {.rows = 300, .columns = 1030}}
#define LOSS_SIZES {                                                                                               \
    {.rows = 1, .columns = 37, .variant = LOSS_ALONE},                                                             \
    {.rows = 1, .columns = 37, .variant = LOSS_AND_GRADIENT},                                                      \
    {.rows = 37, .columns = 259, .variant = LOSS_AND_GRADIENT},                                                    \
    {.rows = 21, .columns = 4101, .variant = LOSS_ALONE},                                                          \
    {.rows = 45, .columns = 4101, .variant = LOSS_AND_GRADIENT}}
#define BLOCK_SIZES {                                                                                              \
    {.rows = 1, .columns = 3, .inner = 5, .variant = BLOCK_WHOLE},                                                 \
    {.rows = 300, .columns = 130, .inner = 259, .variant = BLOCK_WHOLE},                                           \
    {.rows = 67, .columns = 2100, .inner = 2103, .variant = BLOCK_WHOLE},                                          \
    {.rows = 131, .columns = 37, .inner = 37, .variant = BLOCK_ODD}}
#define FLAT_SIZES {{.columns = 1}, {.columns = 299}, {.columns = 100003}}
#define FORWARD(op, tolerance, ...)                                                                                \
    {#op, NULL, describe_##op, run_##op, formula_##op, tolerance, __VA_ARGS__}
#define BACKWARD(op, forward, tolerance, ...)                                                                      \
    {#op, #forward, describe_##op, run_##op, NULL, tolerance, __VA_ARGS__}

static const Operation operations[] = {
    FORWARD(embedding_forward, ONE_ROUNDING, EMBEDDING_SIZES),
    BACKWARD(embedding_backward, embedding_forward, ONE_ROUNDING, EMBEDDING_SIZES),
    FORWARD(rmsnorm_forward, ONE_ROUNDING, NORM_SIZES),
    BACKWARD(rmsnorm_backward, rmsnorm_forward, ONE_ROUNDING, NORM_SIZES),
    FORWARD(linear_forward, ONE_ROUNDING, LINEAR_SIZES(3)),
    BACKWARD(linear_backward_input, linear_forward, ONE_ROUNDING, LINEAR_SIZES(1)),
    BACKWARD(linear_backward_weight, linear_forward, ONE_ROUNDING, LINEAR_SIZES(1)),
    FORWARD(rope, ONE_ROUNDING, ROPE_SIZES),
    FORWARD(attention_forward, ATTENTION, {
        ATTENTION_SIZES,
        {.batch = 2, .rows = 70, .heads = 2, .kv_heads = 1, .head_dim = 8, .variant = APART_LARGE_SCORES}}),
    BACKWARD(attention_backward, attention_forward, ATTENTION, {ATTENTION_SIZES}),
    FORWARD(attention_merge, ONE_ROUNDING, MERGE_SIZES),
    FORWARD(attention_merged, ATTENTION, {
        {.batch = 2, .rows = 7, .keys = 9, .heads = 2, .kv_heads = 1, .head_dim = 6},
        {.batch = 1, .rows = 129, .keys = 200, .heads = 6, .kv_heads = 2, .head_dim = 64},
        {.batch = 2, .rows = 70, .keys = 384, .heads = 2, .kv_heads = 1, .head_dim = 96}}),
    FORWARD(lighthouse_pool_scores, ONE_ROUNDING, LIGHTHOUSE_SIZES),
    FORWARD(lighthouse_select, ONE_ROUNDING, LIGHTHOUSE_SIZES),
    FORWARD(lighthouse_gather, ONE_ROUNDING, LIGHTHOUSE_SIZES),
    BACKWARD(lighthouse_gather_backward, lighthouse_gather, ONE_ROUNDING, LIGHTHOUSE_SIZES),
    FORWARD(lighthouse_scatter, ONE_ROUNDING, SCATTER_SIZES),
    BACKWARD(lighthouse_scatter_backward, lighthouse_scatter, ONE_ROUNDING, SCATTER_SIZES),
    FORWARD(swiglu_forward, ONE_ROUNDING, SWIGLU_SIZES),
    BACKWARD(swiglu_backward, swiglu_forward, ONE_ROUNDING, SWIGLU_SIZES),
    FORWARD(cross_entropy, ONE_ROUNDING, LOSS_SIZES),
    FORWARD(sum, ONE_ROUNDING, FLAT_SIZES),
    FORWARD(sum_of_squares, ONE_ROUNDING, FLAT_SIZES),
    FORWARD(accumulate_rows, ONE_ROUNDING, BLOCK_SIZES),
    FORWARD(copy_rows, 0, BLOCK_SIZES),
    FORWARD(round_rows, ONE_ROUNDING, BLOCK_SIZES),
    FORWARD(round_to_storage, ONE_ROUNDING, FLAT_SIZES),
    FORWARD(adamw, ONE_ROUNDING, FLAT_SIZES),
};

static const Operation attention_pieces =
    BACKWARD(attention_pieces, attention_forward, ATTENTION, {
        {.batch = 2, .rows = 2, .keys = 1, .heads = 2, .kv_heads = 1, .head_dim = 6, .causal = true},
        {.batch = 2, .rows = 131, .keys = 70, .heads = 4, .kv_heads = 2, .head_dim = 22, .causal = true},
        {.batch = 1, .rows = 384, .keys = 192, .heads = 2, .kv_heads = 2, .head_dim = 64, .causal = true}});
static const Operation rope_norms = {"rope_norms", NULL, describe_rope, run_rope, formula_rope, ONE_ROUNDING, {
    {.batch = 3, .rows = 19, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = ROPE_NORMS},
    {.batch = 2, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = ROPE_NORMS}}};
// clang-format on

static const Operation *operation_named(const char *name) {
    for (size_t i = 0; i < COUNT_OF(operations); i++)
        if (!strcmp(operations[i].name, name)) return &operations[i];
    fatal("no operation is named %s", name);
}

// --- the tests ------------------------------------------------------------------------------------------

typedef struct {
    const Operation *operation;
    const Devices *devices;
} Test;

static int count_sizes(const Operation *operation) {
    int count = 0;
    while (count < MAX_SIZES && operation->sizes[count].rows + operation->sizes[count].columns > 0) count++;
    return count;
}

static void test_in_float64(void *argument) {
    const Test *test = (const Test *)argument;
    Device *float64 = test->devices->float64;
    for (int i = 0; i < count_sizes(test->operation); i++) {
        Case c = make_case(test->operation, test->operation->sizes[i], 1);
        if (test->operation->forward) {
            Case forward = join_forward(&c, float64);
            check_gradients(&forward, &c, float64);
            free_case(&forward);
        } else {
            check_formula(&c, float64);
        }
        free_case(&c);
    }
}

static int64_t alignment_of(const Device *device) {
    return strcmp(device->kind, "cuda") ? 1 : 8;
}

static void test_on_device(void *argument) {
    const Test *test = (const Test *)argument;
    for (int i = 0; i < count_sizes(test->operation); i++) {
        Case c = make_case(test->operation, test->operation->sizes[i], alignment_of(test->devices->tested));
        if (test->operation->forward) {
            Case forward = join_forward(&c, test->devices->float64);
            free_case(&forward);
        }
        check_on_device(&c, test->devices);
        free_case(&c);
    }
}

// Adds the crossing piece [batch, part, width] of a gradient to the tokens from `first` on of [batch, rows,
// width].
static void add_crossing(double *whole, const double *crossing, int64_t first, int64_t part, int64_t rows,
                         int64_t batch, int64_t width) {
    for (int64_t i = 0; i < batch * part * width; i++)
        whole[(i / width / part * rows + first + i / width % part) * width + i % width] += crossing[i];
}

// The pieces of a backward, summed, against the whole backward on the same device.
static void check_sum_of_pieces(const Case *pieces, const Devices *devices) {
    static const char *const names[] = {"grad_query", "grad_key", "grad_value"};
    const Sizes *s = &pieces->sizes;
    Sizes uncut = *s;
    uncut.keys = 0;
    Case whole = make_case(operation_named("attention_backward"), uncut, 1);
    for (int i = 0; i < whole.count; i++) {
        const Tensor *tensor = &whole.tensors[i];
        if (tensor->role != INPUT) continue;
        const Tensor *from = &pieces->tensors[find(pieces, tensor->name)];
        memcpy(tensor->values, from->values, tensor->count * sizeof(double));
    }
    Results expected = run_case(&whole, devices->tested), got = run_case(pieces, devices->tested);
    for (int i = 0; i < 3; i++) {
        const int64_t first = i == 0 ? s->keys : 0, part = i == 0 ? s->rows - s->keys : s->keys;
        const int64_t width = (i == 0 ? s->heads : s->kv_heads) * s->head_dim;
        const double tolerance = devices->tested->ops->storage == STORAGE_BFLOAT16 ? ATTENTION : 1e-5;
        add_crossing(got.values[i], got.values[3 + i], first, part, s->rows, s->batch, width);
        char *what = label(pieces, "whole", i);
        check_close(what, got.values[i], expected.values[find(&whole, names[i])], s->batch * s->rows * width,
                    tolerance);
        free(what);
    }
    free_results(&expected);
    free_results(&got);
    free_case(&whole);
}

static void test_attention_pieces(void *argument) {
    const Test *test = (const Test *)argument;
    for (int i = 0; i < count_sizes(test->operation); i++) {
        Case pieces =
            make_case(test->operation, test->operation->sizes[i], alignment_of(test->devices->tested));
        Case forward = join_forward(&pieces, test->devices->float64);
        check_on_device(&pieces, test->devices); // which rounds its inputs
        check_sum_of_pieces(&pieces, test->devices);
        free_case(&forward);
        free_case(&pieces);
    }
}

// The norms are those of the values as the device stores them, not of those before they were rounded.
static void test_rope_norms(void *argument) {
    const Test *test = (const Test *)argument;
    for (int i = 0; i < count_sizes(test->operation); i++) {
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

// Two sets of no keys are no keys, and their vectors count for nothing.
static void test_merge_of_nothing(void *argument) {
    Device *device = (Device *)argument;
    const StorageType storage = device->ops->storage, accumulator = accumulator_type(storage);
    const AttentionShape shape = {.batch = 1,
                                  .query_len = 3,
                                  .heads = 2,
                                  .head_dim = 8,
                                  .output = strides_of(3, 2, 8),
                                  .logsumexp = {6, 1, 3}};
    double nan[48], none[6] = {0};
    set_nan(nan, COUNT_OF(nan));
    for (size_t i = 0; i < COUNT_OF(none); i++) none[i] = -INFINITY;
    void *sum = device_allocate(device, sizeof(nan)), *part = device_allocate(device, sizeof(nan));
    void *logsumexp = device_allocate(device, sizeof(none)), *more = device_allocate(device, sizeof(none));
    for (int first = 0; first < 2; first++) {
        upload(device, sum, accumulator, nan, COUNT_OF(nan));
        upload(device, part, storage, nan, COUNT_OF(nan));
        upload(device, logsumexp, accumulator, first ? nan : none, COUNT_OF(none));
        upload(device, more, accumulator, none, COUNT_OF(none));
        device->ops->attention.merge(sum, logsumexp, part, more, &shape, first, device->stream);
        double *merged = download(device, sum, accumulator, COUNT_OF(nan));
        double *total = download(device, logsumexp, accumulator, COUNT_OF(none));
        for (size_t i = 0; i < COUNT_OF(nan); i++) check(merged[i] == 0, "a sum of nothing is %g", merged[i]);
        for (size_t i = 0; i < COUNT_OF(none); i++)
            check(total[i] == -INFINITY, "the log-sum-exp of nothing is %g", total[i]);
        free(merged);
        free(total);
    }
    void *const all[] = {sum, part, logsumexp, more};
    for (size_t i = 0; i < COUNT_OF(all); i++) device->release(device, all[i]);
}

static void run_test(const char *where, void (*test)(void *), const Operation *operation,
                     const Devices *devices) {
    Test argument = {operation, devices};
    char *name = format_string("%s: %s", where, operation->name);
    test_run(name, test, &argument);
    free(name);
}

// The same CPU device with one thread, or with three if it has one.
static Device *with_other_threads(const Device *device) {
    if (strcmp(device->kind, "cpu") != 0) return NULL;
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads > 1 ? 1 : 3);
    Device *other = cpu_device_create(device->ops->storage);
    omp_set_num_threads(threads);
    return other;
}

static void test_memory(void *argument) {
    Device *device = (Device *)argument;
    unsigned char text[1000], back[1000];
    for (size_t i = 0; i < sizeof(text); i++) text[i] = (unsigned char)random_below(256);
    unsigned char *memory = device_allocate(device, sizeof(text));
    check((uintptr_t)memory % 256 == 0, "device memory should be aligned to 256 bytes, is at %p",
          (void *)memory);
    device->upload(device, memory, text, sizeof(text));
    device->zero(device, memory + 100, 7);
    device->download(device, back, memory, sizeof(back));
    memset(text + 100, 0, 7);
    check(!memcmp(text, back, sizeof(text)), "what was uploaded, and zeroed in part, comes back otherwise");
    device->release(device, memory);

    size_t free_bytes, total_bytes;
    device->memory(device, &free_bytes, &total_bytes);
    check(free_bytes > 0 && free_bytes <= total_bytes, "%zu bytes free of %zu", free_bytes, total_bytes);
    check(!device->allocate(device, 2 * total_bytes), "more memory was allocated than there is");
}

static void check_supports(const Device *device, DecoderShape shape, const char *refusal) {
    char reason[256] = "";
    const bool supported = device->supports(device, &shape, reason, sizeof(reason));
    check(supported == !refusal, "batch %ld, dim %ld, heads of %ld: %s", (long)shape.batch, (long)shape.dim,
          (long)shape.head_dim, supported ? "should be refused" : reason);
    if (refusal) check(strstr(reason, refusal), "the reason should say \"%s\": %s", refusal, reason);
}

static void test_limits(void *argument) {
    const Device *device = (const Device *)argument;
    check_supports(device, (DecoderShape){1, 4096, 32, 128}, NULL);
    if (!strcmp(device->kind, "cpu")) {
        check_supports(device, (DecoderShape){1 << 20, 16384, 1, 16384}, NULL);
        check_supports(device, (DecoderShape){1, 32770, 2, 16385},
                       "--dim 32770 / --heads 2 gives heads of 16385 values: the CPU takes at most 16384");
        return;
    }
    check_supports(device, (DecoderShape){32767, 16384, 64, 256}, NULL);
    check_supports(device, (DecoderShape){1, 2176, 8, 272}, "gives heads of 272 values");
    check_supports(device, (DecoderShape){1, 1024, 8, 136}, "at most 128, or 256 of a multiple of 16");
    check_supports(device, (DecoderShape){1, 16512, 129, 128}, "--dim 16512");
    check_supports(device, (DecoderShape){32768, 1024, 8, 128}, "--batch-size 32768");
}

void test_ops(Device *device) {
    Devices devices = {.tested = device,
                       .float64 = cpu_device_create(STORAGE_FLOAT64),
                       .bfloat16 = cpu_device_create(STORAGE_BFLOAT16),
                       .other_threads = with_other_threads(device)};
    // The checks in float64 need no other device: they are made once, with the CPU's default.
    const bool is_default_cpu = device->ops->storage == STORAGE_FLOAT32;
    for (size_t i = 0; is_default_cpu && i < COUNT_OF(operations); i++)
        run_test("cpu float64", test_in_float64, &operations[i], &devices);
    char *where = format_string("%s %s", device->kind, storage_dtype(device->ops->storage));
    char *memory = format_string("%s: memory", where),
         *nothing = format_string("%s: merge of nothing", where),
         *limits = format_string("%s: shapes that are too large", where);
    test_run(memory, test_memory, device);
    test_run(limits, test_limits, device);
    test_run(nothing, test_merge_of_nothing, device);
    free(memory);
    free(nothing);
    free(limits);
    for (size_t i = 0; i < COUNT_OF(operations); i++)
        run_test(where, test_on_device, &operations[i], &devices);
    run_test(where, test_attention_pieces, &attention_pieces, &devices);
    run_test(where, test_rope_norms, &rope_norms, &devices);
    free(where);
    devices.float64->destroy(devices.float64);
    devices.bfloat16->destroy(devices.bfloat16);
    if (devices.other_threads) devices.other_threads->destroy(devices.other_threads);
}
