// Shared by the benchmarks: medians, random data, the measured ceilings of the device, and the table of
// operations.
#pragma once
#include "device/cuda/profile.h"
#include "device/memory_plan.h"
#include "base/random.h"

#include <cuda_runtime.h>
#include <stdlib.h>

// --- time -----------------------------------------------------------------------------------------------

static inline int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The median duration, in seconds, of `repeats` calls of action(context) after `warmup` calls. The action
// must wait for the device.
static inline double median_seconds(void (*action)(void *), void *context, int warmup, int repeats) {
    double *seconds = host_allocate((size_t)repeats, sizeof(double), "times");
    for (int i = 0; i < warmup; i++) action(context);
    for (int i = 0; i < repeats; i++) {
        const double start = seconds_now();
        action(context);
        seconds[i] = seconds_now() - start;
    }
    qsort(seconds, (size_t)repeats, sizeof(double), compare_doubles);
    const double median = seconds[repeats / 2];
    free(seconds);
    return median;
}

// --- data -----------------------------------------------------------------------------------------------

// Fills memory with `count` standard normal bfloat16 numbers, which repeat after 2^26.
static inline void upload_random(Device *device, void *memory, int64_t count) {
    const int64_t period = min_i64(count, (int64_t)1 << 26);
    uint16_t *values = host_allocate((size_t)period, sizeof(uint16_t), "random values");
#pragma omp parallel for
    for (int64_t i = 0; i < period; i++)
        values[i] = bfloat16_from_float((float)random_normal(7, (uint64_t)i));
    for (int64_t start = 0; start < count; start += period)
        device->upload(device, (uint16_t *)memory + start, values,
                       (size_t)min_i64(period, count - start) * sizeof(uint16_t));
    free(values);
}

// --- ceilings -------------------------------------------------------------------------------------------

typedef struct {
    double bytes_per_second; // bytes read plus bytes written by a copy on the device
    double flops_per_second; // FLOP/s of a large bfloat16 matrix product
} Ceilings;

typedef struct {
    Device *device;
    void *a, *b, *c;
    size_t bytes;
    int64_t size; // rows and columns of the matrices
    int products; // products that are queued before each wait
} CeilingRun;

static inline void ceiling_copy(void *context) {
    CeilingRun *run = (CeilingRun *)context;
    cudaMemcpy(run->b, run->a, run->bytes, cudaMemcpyDeviceToDevice);
    cudaDeviceSynchronize();
}

static inline void ceiling_multiply(void *context) {
    CeilingRun *run = (CeilingRun *)context;
    for (int i = 0; i < run->products; i++)
        run->device->ops->linear.forward(run->c, run->a, run->b, NULL, run->size, run->size, run->size,
                                         run->device->stream);
    run->device->synchronize(run->device);
}

static inline Ceilings measure_ceilings(Device *device) {
    CeilingRun run = {device, NULL, NULL, NULL, (size_t)2 << 30, 8192, 10};
    MemoryPlan *memory = memory_plan_create(device);
    const size_t a = memory_plan_add(memory, run.bytes, "a"), b = memory_plan_add(memory, run.bytes, "b");
    const size_t c = memory_plan_add(memory, (size_t)(run.size * run.size) * 2, "c");
    memory_plan_allocate(memory);
    run.a = memory_at(memory, a);
    run.b = memory_at(memory, b);
    run.c = memory_at(memory, c);
    upload_random(device, run.a, run.size * run.size);
    upload_random(device, run.b, run.size * run.size);
    const double flops = 2.0 * (double)run.size * (double)run.size * (double)run.size * run.products;
    Ceilings ceilings;
    ceilings.flops_per_second = flops / median_seconds(ceiling_multiply, &run, 2, 9);
    ceilings.bytes_per_second = 2.0 * (double)run.bytes / median_seconds(ceiling_copy, &run, 2, 9);
    memory_plan_free(memory);
    printf("%s: device copy %.2f TB/s (read plus write), bfloat16 product of 8192x8192x8192 %.0f TFLOP/s\n\n",
           device->name, 1e-12 * ceilings.bytes_per_second, 1e-12 * ceilings.flops_per_second);
    return ceilings;
}

// --- operations -----------------------------------------------------------------------------------------

// Prints the rows of cuda_profile_stop as a table, and for each how near it comes to the ceiling that limits
// it.
static inline void print_operations(const ProfileRow *rows, int count, const Ceilings *ceilings) {
    double total = 0;
    for (int i = 0; i < count; i++) total += rows[i].milliseconds;
    printf("| operation | calls | ms | ms a call | share | TFLOP/s | TB/s | of its ceiling |\n"
           "|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < count; i++) {
        const ProfileRow *row = &rows[i];
        const double seconds = 1e-3 * row->milliseconds;
        const double moving = row->bytes / ceilings->bytes_per_second;
        const double computing = row->flops / ceilings->flops_per_second;
        printf("| %s | %ld | %.2f | %.4f | %.1f%% | %.0f | %.2f | %.0f%% |\n", row->name, (long)row->calls,
               row->milliseconds, row->milliseconds / (double)row->calls, 100 * row->milliseconds / total,
               1e-12 * row->flops / seconds, 1e-12 * row->bytes / seconds,
               100 * (moving > computing ? moving : computing) / seconds);
    }
    printf("| all | | %.2f | | | | | |\n\n", total);
}
