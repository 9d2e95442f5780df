// Tests of operations. Each operation is described once, by a row in the table of its file: its tensors in the
// order of its arguments, how to call it, a formula for its results (for a backward instead the name of the
// forward), and the sizes to test. All checks follow from that description:
//   - in float64, results equal the formula, and gradients equal central differences of the forward;
//   - results on the device under test equal those in float64 (and CUDA's those of the CPU in bfloat16) for
//     inputs that were rounded to the device's storage type first;
//   - running again, or with another number of CPU threads, gives the same bytes;
//   - results are written completely (they are NaN before); inputs, and the memory before and after every
//     tensor, do not change.
//
// To test another operation, write describe_OP, RUN(OP) and formula_OP beside those of its kind, and a row.
#pragma once
#include "dev/test/test.h"

// --- descriptions ---------------------------------------------------------------------------------------

typedef enum { INPUT, WRITTEN, UPDATED } Role;
// FROM_STORED: in the accumulator type, but computed from values that were rounded to the storage type.
typedef enum { STORED, ACCUMULATED, FROM_STORED, DOUBLE, INT32 } Element;

typedef struct {
    const char *name;
    Role role;
    Element element;
    size_t count;
    double *values; // contents before the operation; NULL if WRITTEN
} Tensor;

// The sizes of a test of an operation. Columns, inner and head_dim are rounded up to multiples of 8 on CUDA.
typedef struct {
    int64_t batch, rows, columns, inner;
    int64_t keys; // number of keys in attention that is not causal; 0: as many as rows
    int heads, kv_heads, head_dim;
    int key_score_heads; // 0: kv_heads
    bool causal;
    int levels, log2_pool, tile, chunks; // for Lighthouse attention over a sequence of `rows` tokens
    int pieces;                          // pieces of the sequence; 0: it is whole
    int variant;                         // a variant of the call, from an enum in the operation's file
} Sizes;

enum { MAX_TENSORS = 12, PIECES = 3 };

typedef struct Case Case;

typedef struct {
    const char *name;
    const char *forward; // the operation that this one is the backward of, or NULL
    void (*describe)(Case *c);
    void (*run)(const Case *c, const Ops *ops, void **at, void *workspace, Stream *stream);
    void (*formula)(const Case *c, double **values); // results from inputs, in place; NULL with `forward`
    double tolerance;                                // for the bfloat16 results
    const Sizes *sizes;
    int sizes_count;
} Operation;

struct Case {
    const Operation *operation;
    Sizes sizes;
    AttentionShape attention[PIECES]; // in attention operations: the shape of each call
    int attention_count;
    LighthouseShape lighthouse;
    Tensor tensors[MAX_TENSORS];
    int count;
};

// Defines run_OPERATION, which calls the operation.
#define RUN(operation)                                                                                       \
    static void run_##operation(const Case *c, const Ops *ops, void **at,                                    \
                                void *workspace __attribute__((unused)), Stream *stream)

// Rows of a file's table. They refer to the functions named after the operation; the last argument is the
// sizes to test, ALL or the FIRST ones of an array.
#define FORWARD(op, tolerance, ...)                                                                          \
    { #op, NULL, describe_##op, run_##op, formula_##op, tolerance, __VA_ARGS__ }
#define BACKWARD(op, forward, tolerance, ...)                                                                \
    { #op, #forward, describe_##op, run_##op, NULL, tolerance, __VA_ARGS__ }
#define ALL(sizes)          sizes, COUNT_OF(sizes)
#define FIRST(sizes, count) sizes, count

// Tolerances for results stored as bfloat16: one rounding changes a value by at most 2^-9 of it.
#define ONE_ROUNDING 4e-3
#define ATTENTION    1e-2 // where the probabilities may have been rounded too

// The table of a file; test_ops.c has the list of them.
typedef struct {
    const Operation *rows;
    int count;
} OperationTable;

extern const OperationTable embedding_operations, norm_operations, linear_operations, rope_operations,
    rope_entries_operations, attention_operations, attention_merge_operations, lighthouse_select_operations,
    lighthouse_gather_operations, lighthouse_scatter_operations, swiglu_operations, loss_operations,
    reduce_operations, convert_operations, adamw_operations;

// --- making cases ---------------------------------------------------------------------------------------

// A case of the operation; columns, inner and head_dim are rounded up to multiples of `alignment`.
Case make_case(const Operation *operation, Sizes sizes, int64_t alignment);
void free_case(Case *c);

// Adds a tensor of `count` standard normal values to the case and returns the values; NULL if the role is
// WRITTEN.
double *add_tensor(Case *c, const char *name, Role role, Element element, int64_t count);

// Adds token numbers below `vocab`.
void add_tokens(Case *c, const char *name, int64_t count, int64_t vocab);

// The index of the tensor of that name, or -1.
int find_tensor(const Case *c, const char *name);

// The type, and the number of bytes, of a tensor on a device of this storage type.
StorageType type_of(Element element, StorageType storage);
size_t bytes_of(const Tensor *tensor, StorageType storage);

// Rounds every input to the type that it has on a device of this storage type.
void round_case(Case *c, StorageType storage);

// --- running them ---------------------------------------------------------------------------------------

// The contents of each tensor after a run: its bytes on the device, and its values as doubles.
typedef struct {
    unsigned char *bytes[MAX_TENSORS];
    double *values[MAX_TENSORS];
} Results;

// Runs the operation, and checks that it writes its results completely and nothing else.
Results run_case(const Case *c, Device *device);
void free_results(Results *results);

// Allocates device memory; ends the process if there is not enough.
unsigned char *device_allocate(Device *device, size_t bytes);

// --- checks ---------------------------------------------------------------------------------------------

// The devices of a test: the one under test, and those with which it is compared.
typedef struct {
    Device *tested, *float64, *bfloat16;
    Device *other_threads; // the tested device with another number of threads; NULL if that is no CPU
} Devices;

// A text that names a check: operation, tensor, sizes, and `against`. The caller frees it.
char *label(const Case *c, const char *against, int tensor);

// Makes the forward case of a backward case. The backward's inputs that are inputs or results of the forward,
// by name, are set to the forward's.
Case join_forward(Case *backward, Device *float64);

// Compare the float64 results with the formula of the operation, or the gradients with differences of its
// forward.
void check_formula(const Case *c, Device *float64);
void check_gradients(Case *forward, const Case *backward, Device *float64);

// Compares the results of the device under test with those of the others. Rounds the inputs of the case
// first.
void check_on_device(Case *c, const Devices *devices);

// The operation of that name, of all tables.
const Operation *operation_named(const char *name);

// A test of one operation, for test_run.
typedef struct {
    const Operation *operation;
    const Devices *devices;
} OperationTest;

// The multiple to which columns, inner and head_dim are rounded up on this device.
int64_t alignment_of(const Device *device);

// Tests of the device under test that do not follow from a table.
void test_attention_pieces(const char *where, const Devices *devices);
void test_rope_norms(const char *where, const Devices *devices);
void test_merge_of_nothing(const char *where, Device *device);
