// Sums over whole arrays.
#include "device/cpu/operations.h"

// The array is divided into this many parts. Each part is summed, then the parts' sums are added in order.
enum { PARTS = 256 };

static double sum_parts(const accumulator_t *x, int64_t count, bool squared, const Stream *stream) {
    const int64_t length = divide_up(count, PARTS);
    double parts[PARTS];
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t part = 0; part < PARTS; part++) {
        const int64_t end = min_i64(count, (part + 1) * length);
        double total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = part * length; i < end; i++)
            total += squared ? (double)x[i] * (double)x[i] : (double)x[i];
        parts[part] = total;
    }
    double total = 0;
    for (int64_t part = 0; part < PARTS; part++) total += parts[part];
    return total;
}

static void sum(double *out, const void *x, int64_t count, Stream *stream) {
    *out = sum_parts(x, count, false, stream);
}

static void sum_of_squares(double *out, const void *x, int64_t count, Stream *stream) {
    *out = sum_parts(x, count, true, stream);
}

const ReduceOps CPU_NAME(reduce) = {.sum = sum, .sum_of_squares = sum_of_squares};
