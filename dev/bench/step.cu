// Where the time of a training step goes, on a CUDA device: tokens/s, and a table of every operation beside
// the ceilings measured in the same run.
//
//   step [--model PRESET] [--deterministic] [--recompute LEVEL] SEQ_LEN...
#include "../../llmc/cuda/profile.h"
#include "../../llmc/flops.h"
#include "../../llmc/optimizer.h"
#include "../../llmc/random.h"

#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WARMUP = 2, REPEATS = 5, MOST_REPEATS = 64 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The median wall-clock seconds of action(context), which waits for the device.
static double median_seconds(void (*action)(void *), void *context, int repeats) {
    double seconds[MOST_REPEATS];
    for (int i = 0; i < WARMUP; i++) action(context);
    for (int i = 0; i < repeats; i++) {
        const double start = now();
        action(context);
        seconds[i] = now() - start;
    }
    qsort(seconds, (size_t)repeats, sizeof(double), compare_doubles);
    return seconds[repeats / 2];
}

// --- ceilings -------------------------------------------------------------------------------------------

typedef struct {
    Device *device;
    void *a, *b, *c;
    size_t bytes;
    int64_t size; // of the square matrices
} Ceilings;

static void copy(void *context) {
    Ceilings *c = (Ceilings *)context;
    cudaMemcpy(c->b, c->a, c->bytes, cudaMemcpyDeviceToDevice);
    cudaDeviceSynchronize();
}

static void multiply(void *context) {
    Ceilings *c = (Ceilings *)context;
    for (int i = 0; i < 10; i++)
        c->device->ops->linear_forward(c->c, c->a, c->b, NULL, c->size, c->size, c->size, c->device->stream);
    c->device->synchronize(c->device);
}

static void upload_random(Device *device, void *memory, int64_t count) {
    uint16_t *values = (uint16_t *)host_allocate((size_t)count, sizeof(uint16_t), "random values");
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++) values[i] = bfloat16_from_float((float)random_normal(7, (uint64_t)i));
    device->upload(device, memory, values, (size_t)count * sizeof(uint16_t));
    free(values);
}

static void measure_ceilings(Device *device, double *bytes_per_second, double *flops_per_second) {
    Ceilings c = {device, NULL, NULL, NULL, (size_t)2 << 30, 8192};
    MemoryPlan plan = {NULL, 0, 0, 0};
    plan_add(&plan, c.bytes, &c.a, "a");
    plan_add(&plan, c.bytes, &c.b, "b");
    plan_add(&plan, (size_t)(c.size * c.size) * 2, &c.c, "c");
    plan_allocate(&plan, device);
    upload_random(device, c.a, c.size * c.size);
    upload_random(device, c.b, c.size * c.size);
    *flops_per_second =
        10 * 2.0 * (double)c.size * (double)c.size * (double)c.size / median_seconds(multiply, &c, 9);
    *bytes_per_second = 2.0 * (double)c.bytes / median_seconds(copy, &c, 9);
    plan_release(&plan, device);
    plan_clear(&plan);
    printf("%s: device copy %.2f TB/s (read plus write), bfloat16 product of 8192x8192x8192 %.0f TFLOP/s\n\n",
           device->name, 1e-12 * *bytes_per_second, 1e-12 * *flops_per_second);
}

// --- a step ---------------------------------------------------------------------------------------------

typedef struct {
    Device *device;
    MemoryPlan plan;
    Model model;
    Optimizer optimizer;
    int32_t *inputs, *targets;
} Bench;

static void forward_backward(void *context) {
    Bench *b = (Bench *)context;
    model_accumulate(&b->model, 0, b->inputs, b->targets, 1.0 / (double)b->model.settings.seq_len);
    b->device->synchronize(b->device);
}

static void optimizer_step(void *context) {
    Bench *b = (Bench *)context;
    optimizer_update(&b->optimizer, &b->model, 1, 1e-5, optimizer_grad_norm(&b->optimizer, &b->model));
    model_zero_gradients(&b->model);
    b->device->synchronize(b->device);
}

static void print_operations(Bench *b, double bytes_per_second, double flops_per_second) {
    cuda_profile_start(b->device);
    forward_backward(b);
    optimizer_step(b);
    int count;
    ProfileRow *rows = cuda_profile_stop(b->device, &count);
    double total = 0;
    for (int i = 0; i < count; i++) total += rows[i].milliseconds;
    printf("\n| operation | calls | ms | share | TFLOP/s | TB/s | of its ceiling "
           "|\n|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < count; i++) {
        const double seconds = 1e-3 * rows[i].milliseconds;
        const double moving = rows[i].bytes / bytes_per_second, computing = rows[i].flops / flops_per_second;
        printf("| %s | %ld | %.2f | %.1f%% | %.0f | %.2f | %.0f%% |\n", rows[i].name, (long)rows[i].calls,
               rows[i].milliseconds, 100 * rows[i].milliseconds / total, 1e-12 * rows[i].flops / seconds,
               1e-12 * rows[i].bytes / seconds, 100 * (moving > computing ? moving : computing) / seconds);
    }
    printf("| all | | %.2f | | | | |\n\n", total);
    free(rows);
}

static void bench_step(Device *device, const char *preset, int64_t seq_len, RecomputeLevel recompute,
                       bool deterministic, double bytes_per_second, double flops_per_second) {
    static Bench b; // the plan keeps addresses inside it
    memset(&b, 0, sizeof(b));
    b.device = device;
    const ModelConfig *config = model_preset(preset);
    const ModelSettings settings = {1, seq_len, 1, recompute, deterministic, 0, 0};
    const OptimizerSettings optimizer = {0.9, 0.95, 1e-8, 0.1, false, 1.0};
    model_create(&b.model, device, config, &settings, &b.plan);
    optimizer_create(&b.optimizer, &optimizer, &b.model, &b.plan);
    plan_allocate(&b.plan, device);
    model_start(&b.model);
    optimizer_initialize(&b.optimizer, &b.model, 1);
    model_zero_gradients(&b.model);
    b.inputs = (int32_t *)host_allocate((size_t)seq_len, sizeof(int32_t), "tokens");
    b.targets = (int32_t *)host_allocate((size_t)seq_len, sizeof(int32_t), "tokens");
    for (int64_t i = 0; i < seq_len; i++) b.inputs[i] = (int32_t)(random_u64(3, (uint64_t)i) % 256); // bytes
    for (int64_t i = 0; i < seq_len; i++) b.targets[i] = b.inputs[(i + 1) % seq_len];

    const double step = median_seconds(forward_backward, &b, REPEATS);
    const double update = median_seconds(optimizer_step, &b, REPEATS);
    size_t free_bytes, total_bytes;
    device->memory(device, &free_bytes, &total_bytes);
    const FlopsPerToken flops = flops_per_token(config, seq_len);
    const double tokens = (double)seq_len, work = (flops.linear + flops.attention) * tokens;
    printf("%s, %ld tokens, recompute %s, deterministic %s: %.1f ms forward and backward, %.2f ms optimizer "
           "step\n",
           preset, (long)seq_len, recompute_name(recompute), deterministic ? "on" : "off", 1e3 * step,
           1e3 * update);
    printf("  %.1fk tokens/s (%.1fk with an optimizer step after every sequence), %.0f TFLOP/s by count",
           1e-3 * tokens / step, 1e-3 * tokens / (step + update), 1e-12 * work / step);
    if (device->peak_flops > 0) printf(", MFU %.1f%%", 100 * work / step / device->peak_flops);
    printf("; %.2f GiB planned, %.2f GiB in use on the device\n", (double)b.plan.bytes / 0x1p30,
           (double)(total_bytes - free_bytes) / 0x1p30);
    print_operations(&b, bytes_per_second, flops_per_second);
    plan_release(&b.plan, device);
    plan_clear(&b.plan);
    model_free(&b.model);
    free(b.inputs);
    free(b.targets);
}

int main(int argc, char **argv) {
    const char *preset = "530M";
    bool deterministic = false;
    RecomputeLevel recompute = RECOMPUTE_NONE;
    double bytes_per_second, flops_per_second;
    Device *device = cuda_device_create(0);
    measure_ceilings(device, &bytes_per_second, &flops_per_second);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--deterministic")) {
            deterministic = true;
        } else if (!strcmp(argv[i], "--model") && i + 1 < argc) {
            preset = argv[++i];
            if (!model_preset(preset)) fatal("--model %s: expected one of %s", preset, model_preset_names());
        } else if (!strcmp(argv[i], "--recompute") && i + 1 < argc) {
            recompute = recompute_level(argv[++i]);
            if (recompute == RECOMPUTE_LEVELS)
                fatal("--recompute %s: expected none, cheap, ffn, qkv or block", argv[i]);
        } else {
            const int64_t seq_len = atoll(argv[i]);
            if (seq_len < 1) fatal("%s: expected a sequence length", argv[i]);
            bench_step(device, preset, seq_len, recompute, deterministic, bytes_per_second, flops_per_second);
        }
    }
    device->destroy(device);
    return 0;
}
