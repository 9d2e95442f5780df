// The tests of all operations.
#include "dev/test/ops/case.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

static const OperationTable *const tables[] = {
    &embedding_operations,
    &norm_operations,
    &linear_operations,
    &rope_operations,
    &rope_entries_operations,
    &attention_operations,
    &attention_merge_operations,
    &lighthouse_select_operations,
    &lighthouse_gather_operations,
    &lighthouse_scatter_operations,
    &swiglu_operations,
    &loss_operations,
    &reduce_operations,
    &convert_operations,
    &adamw_operations,
};

const Operation *operation_named(const char *name) {
    for (size_t i = 0; i < COUNT_OF(tables); i++)
        for (int j = 0; j < tables[i]->count; j++)
            if (!strcmp(tables[i]->rows[j].name, name)) return &tables[i]->rows[j];
    fatal("no operation is named %s", name);
}

static void test_in_float64(void *argument) {
    const OperationTest *test = (const OperationTest *)argument;
    Device *float64 = test->devices->float64;
    for (int i = 0; i < test->operation->sizes_count; i++) {
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

int64_t alignment_of(const Device *device) {
    return strcmp(device->kind, "cuda") ? 1 : 8;
}

static void test_on_device(void *argument) {
    const OperationTest *test = (const OperationTest *)argument;
    for (int i = 0; i < test->operation->sizes_count; i++) {
        Case c = make_case(test->operation, test->operation->sizes[i], alignment_of(test->devices->tested));
        if (test->operation->forward) {
            Case forward = join_forward(&c, test->devices->float64);
            free_case(&forward);
        }
        check_on_device(&c, test->devices);
        free_case(&c);
    }
}

static void run_test(const char *where, void (*test)(void *), const Operation *operation,
                     const Devices *devices) {
    OperationTest argument = {operation, devices};
    char *name = format_string("%s: %s", where, operation->name);
    test_run(name, test, &argument);
    free(name);
}

// A CPU device like this one, but with one thread, or with three if it has one. NULL for a GPU.
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
    Reason reason = {""};
    const bool supported = device->supports(device, &shape, &reason);
    check(supported == !refusal, "batch %ld, dim %ld, heads of %ld: %s", (long)shape.batch, (long)shape.dim,
          (long)shape.head_dim, supported ? "should be refused" : reason.text);
    if (refusal)
        check(strstr(reason.text, refusal), "the reason should say \"%s\": %s", refusal, reason.text);
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

static void test_tables(const char *where, void (*test)(void *), const Devices *devices) {
    for (size_t i = 0; i < COUNT_OF(tables); i++)
        for (int j = 0; j < tables[i]->count; j++) run_test(where, test, &tables[i]->rows[j], devices);
}

void test_ops(Device *device) {
    Devices devices = {.tested = device,
                       .float64 = cpu_device_create(STORAGE_FLOAT64),
                       .bfloat16 = cpu_device_create(STORAGE_BFLOAT16),
                       .other_threads = with_other_threads(device)};
    // The checks in float64 do not involve the tested device: they run once, with the CPU's default type.
    if (device->ops->storage == STORAGE_FLOAT32) test_tables("cpu float64", test_in_float64, &devices);
    char *where = format_string("%s %s", device->kind, storage_dtype(device->ops->storage));
    char *memory = format_string("%s: memory", where),
         *limits = format_string("%s: shapes that are too large", where);
    test_run(memory, test_memory, device);
    test_run(limits, test_limits, device);
    free(memory);
    free(limits);
    test_merge_of_nothing(where, device);
    test_tables(where, test_on_device, &devices);
    test_attention_pieces(where, &devices);
    test_rope_norms(where, &devices);
    free(where);
    devices.float64->destroy(devices.float64);
    devices.bfloat16->destroy(devices.bfloat16);
    if (devices.other_threads) devices.other_threads->destroy(devices.other_threads);
}
