// Conversions between the storage type and the accumulator type, element by element.
#include "device/cpu/operations.h"

static void accumulate_rows(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                            int64_t columns, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        accumulator_t *out_row = (accumulator_t *)out + row * out_stride;
        const storage_t *in_row = (const storage_t *)in + row * in_stride;
        for (int64_t j = 0; j < columns; j++) out_row[j] += load(&in_row[j]);
    }
}

static void copy_rows(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                      int64_t columns, Stream *stream) {
    const size_t row_bytes = (size_t)columns * sizeof(storage_t);
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++)
        memcpy((storage_t *)out + row * out_stride, (const storage_t *)in + row * in_stride, row_bytes);
}

static void round_rows(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                       int64_t columns, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        storage_t *out_row = (storage_t *)out + row * out_stride;
        const accumulator_t *in_row = (const accumulator_t *)in + row * in_stride;
        for (int64_t j = 0; j < columns; j++) store(&out_row[j], in_row[j]);
    }
}

static void round_to_storage(void *out, const void *in, int64_t count, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t i = 0; i < count; i++) store((storage_t *)out + i, ((const accumulator_t *)in)[i]);
}

const ConvertOps CPU_NAME(convert) = {.accumulate_rows = accumulate_rows,
                                      .copy_rows = copy_rows,
                                      .round_rows = round_rows,
                                      .round_to_storage = round_to_storage};
