// The operations of llmc/device/ops.h in plain C: the oracle that every other device is compared with, and
// the CPU's own. Loops are cut so that no result depends on the number of threads.
#include "device/cpu/ops_lighthouse.h"
#include "device/cpu/ops_matrix.h"

#include <tgmath.h>

// --- embedding ------------------------------------------------------------------------------------------

static void embedding_forward(void *out, const void *weight, const int32_t *tokens, int64_t rows, int64_t dim,
                              int64_t vocab, Stream *stream) {
    (void)vocab;
    const size_t row_bytes = (size_t)dim * sizeof(storage_t);
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++)
        memcpy((storage_t *)out + row * dim, (const storage_t *)weight + tokens[row] * dim, row_bytes);
}

enum { COLUMNS = 32 }; // that one thread sums over all rows

static void embedding_backward(void *grad_weight, const void *grad_out, const int32_t *tokens, int64_t rows,
                               int64_t dim, int64_t vocab, Stream *stream) {
    (void)vocab;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t first = 0; first < dim; first += COLUMNS) {
        const int64_t columns = min_i64(COLUMNS, dim - first);
        for (int64_t row = 0; row < rows; row++) {
            accumulator_t *to = (accumulator_t *)grad_weight + tokens[row] * dim + first;
            const storage_t *from = (const storage_t *)grad_out + row * dim + first;
            for (int64_t j = 0; j < columns; j++) to[j] += load(&from[j]);
        }
    }
}

// --- normalization --------------------------------------------------------------------------------------

static void rmsnorm_forward(void *out, void *rstd, const void *x, const void *weight, int64_t rows,
                            int64_t dim, double epsilon, Stream *stream) {
    const storage_t *w = weight;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *x_row = (const storage_t *)x + row * dim;
        storage_t *out_row = (storage_t *)out + row * dim;
        double squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < dim; j++) squares += (double)load(&x_row[j]) * (double)load(&x_row[j]);
        const accumulator_t scale = (accumulator_t)(1 / sqrt(squares / (double)dim + epsilon));
        ((accumulator_t *)rstd)[row] = scale;
        for (int64_t j = 0; j < dim; j++) store(&out_row[j], load(&x_row[j]) * scale * load(&w[j]));
    }
}

static void rmsnorm_backward_weight(accumulator_t *grad_weight, const storage_t *grad_out, const storage_t *x,
                                    const accumulator_t *rstd, int64_t rows, int64_t dim,
                                    const Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t first = 0; first < dim; first += COLUMNS) {
        const int64_t columns = min_i64(COLUMNS, dim - first);
        double sums[COLUMNS] = {0};
        for (int64_t row = 0; row < rows; row++) {
            const storage_t *grad_row = grad_out + row * dim + first, *x_row = x + row * dim + first;
            for (int64_t j = 0; j < columns; j++) sums[j] += load(&grad_row[j]) * load(&x_row[j]) * rstd[row];
        }
        for (int64_t j = 0; j < columns; j++) grad_weight[first + j] += (accumulator_t)sums[j];
    }
}

// With n = x·rstd and h = grad_out·weight the norm's own gradient is rstd·(h - n·mean(h·n)).
static void rmsnorm_backward(void *grad_x, void *grad_weight, const void *grad_residual, const void *grad_out,
                             const void *x, const void *weight, const void *rstd, int64_t rows, int64_t dim,
                             Stream *stream) {
    const storage_t *w = weight;
    rmsnorm_backward_weight(grad_weight, grad_out, x, rstd, rows, dim, stream);
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *x_row = (const storage_t *)x + row * dim;
        const storage_t *grad_row = (const storage_t *)grad_out + row * dim;
        const storage_t *residual_row = grad_residual ? (const storage_t *)grad_residual + row * dim : NULL;
        storage_t *out_row = (storage_t *)grad_x + row * dim;
        const accumulator_t scale = ((const accumulator_t *)rstd)[row];
        double dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < dim; j++) dot += load(&grad_row[j]) * load(&w[j]) * (load(&x_row[j]) * scale);
        const accumulator_t mean = (accumulator_t)(dot / (double)dim);
        for (int64_t j = 0; j < dim; j++) {
            accumulator_t own = scale * (load(&grad_row[j]) * load(&w[j]) - load(&x_row[j]) * scale * mean);
            store(&out_row[j], residual_row ? load(&residual_row[j]) + own : own);
        }
    }
}

// --- rotary positions -----------------------------------------------------------------------------------

static accumulator_t norm_of(const storage_t *x, int64_t count) {
    accumulator_t squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < count; j++) squares += load(&x[j]) * load(&x[j]);
    return sqrt(squares);
}

static void rope(void *x, void *norms, int64_t norms_stride, const void *angles, int64_t batch,
                 int64_t seq_len, int heads, int rotated_heads, int head_dim, bool inverse, Stream *stream) {
    const int64_t half = head_dim / 2;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t token = 0; token < batch * seq_len; token++) {
        const accumulator_t *angle = (const accumulator_t *)angles + token % seq_len * half * 2;
        for (int64_t head = 0; head < rotated_heads; head++) {
            storage_t *first = (storage_t *)x + (token * heads + head) * head_dim, *second = first + half;
            for (int64_t j = 0; j < half; j++) {
                accumulator_t cosine = angle[2 * j], sine = inverse ? -angle[2 * j + 1] : angle[2 * j + 1];
                accumulator_t a = load(&first[j]), b = load(&second[j]);
                store(&first[j], a * cosine - b * sine);
                store(&second[j], b * cosine + a * sine);
            }
            if (!norms) continue;
            const int64_t row = token / seq_len * rotated_heads + head;
            ((accumulator_t *)norms)[row * norms_stride + token % seq_len] = norm_of(first, head_dim);
        }
    }
}

// --- feed-forward ---------------------------------------------------------------------------------------

static accumulator_t sigmoid(accumulator_t x) {
    return 1 / (1 + exp(-x));
}

static void swiglu_forward(void *out, const void *gate_up, int64_t rows, int64_t dim, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *gate_row = (const storage_t *)gate_up + row * 2 * dim, *up_row = gate_row + dim;
        storage_t *out_row = (storage_t *)out + row * dim;
        for (int64_t j = 0; j < dim; j++) {
            accumulator_t gate = load(&gate_row[j]);
            store(&out_row[j], gate * sigmoid(gate) * load(&up_row[j]));
        }
    }
}

static void swiglu_backward(void *grad_gate_up, const void *grad_out, const void *gate_up, int64_t rows,
                            int64_t dim, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *gate_row = (const storage_t *)gate_up + row * 2 * dim, *up_row = gate_row + dim;
        const storage_t *grad_row = (const storage_t *)grad_out + row * dim;
        storage_t *grad_gate = (storage_t *)grad_gate_up + row * 2 * dim, *grad_up = grad_gate + dim;
        for (int64_t j = 0; j < dim; j++) {
            accumulator_t gate = load(&gate_row[j]), up = load(&up_row[j]), grad = load(&grad_row[j]);
            accumulator_t s = sigmoid(gate);
            store(&grad_gate[j], grad * up * s * (1 + gate * (1 - s)));
            store(&grad_up[j], grad * gate * s);
        }
    }
}

// --- loss -----------------------------------------------------------------------------------------------

static void cross_entropy(void *losses, void *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                          double gradient_scale, Stream *stream) {
    const accumulator_t gradient = (accumulator_t)gradient_scale;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        storage_t *logit = (storage_t *)logits + row * vocab;
        accumulator_t max = -INFINITY;
        for (int64_t j = 0; j < vocab; j++) max = load(&logit[j]) > max ? load(&logit[j]) : max;
        double sum = 0;
        for (int64_t j = 0; j < vocab; j++) sum += exp(load(&logit[j]) - max);
        ((accumulator_t *)losses)[row] = (accumulator_t)(log(sum) + (max - load(&logit[targets[row]])));
        if (gradient_scale == 0) continue;
        const accumulator_t inverse = (accumulator_t)(1 / sum);
        for (int64_t j = 0; j < vocab; j++) {
            accumulator_t probability = exp(load(&logit[j]) - max) * inverse;
            store(&logit[j], gradient * (j == targets[row] ? probability - 1 : probability));
        }
    }
}

// --- reductions and conversions -------------------------------------------------------------------------

// The array is summed in this many parts, each of them and then all of them from the first to the last.
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

// --- optimizer ------------------------------------------------------------------------------------------

static void adamw(void *weights, void *master, void *m, void *v, const void *grad, int64_t count,
                  const AdamwStep *update, Stream *stream) {
    storage_t *w = weights;
    accumulator_t *p = master, *first = m, *second = v;
    const accumulator_t *g = grad;
    const accumulator_t learning_rate = (accumulator_t)update->learning_rate;
    const accumulator_t beta1 = (accumulator_t)update->beta1, rest1 = (accumulator_t)(1 - update->beta1);
    const accumulator_t beta2 = (accumulator_t)update->beta2, rest2 = (accumulator_t)(1 - update->beta2);
    const accumulator_t correction1 = (accumulator_t)(1 - pow(update->beta1, (double)update->step));
    const accumulator_t correction2 = (accumulator_t)(1 - pow(update->beta2, (double)update->step));
    const accumulator_t epsilon = (accumulator_t)update->epsilon, decay = (accumulator_t)update->weight_decay;
    const accumulator_t gradient_scale = (accumulator_t)update->gradient_scale;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t i = 0; i < count; i++) {
        const accumulator_t gradient = gradient_scale * g[i];
        first[i] = beta1 * first[i] + rest1 * gradient;
        second[i] = beta2 * second[i] + rest2 * gradient * gradient;
        const accumulator_t m_hat = first[i] / correction1, v_hat = second[i] / correction2;
        p[i] -= learning_rate * (m_hat / (sqrt(v_hat) + epsilon) + decay * p[i]);
        store(&w[i], p[i]);
    }
}

const Ops CPU_NAME(ops) = {
    .storage = STORAGE_TYPE,
    .embedding = {.forward = embedding_forward, .backward = embedding_backward},
    .rmsnorm = {.forward = rmsnorm_forward, .backward = rmsnorm_backward},
    .linear = {.forward = CPU_NAME(linear_forward),
               .backward_input = CPU_NAME(linear_backward_input),
               .backward_weight = CPU_NAME(linear_backward_weight)},
    .rope = {.rotate = rope},
    .attention = {.workspace = CPU_NAME(attention_workspace),
                  .forward = CPU_NAME(attention_forward),
                  .backward = CPU_NAME(attention_backward),
                  .merge = CPU_NAME(attention_merge)},
    .selection = {.supported = CPU_NAME(lighthouse_supported),
                  .pool_scores = CPU_NAME(lighthouse_pool_scores),
                  .select = CPU_NAME(lighthouse_select)},
    .gather = {.forward = CPU_NAME(lighthouse_gather), .backward = CPU_NAME(lighthouse_gather_backward)},
    .scatter = {.forward = CPU_NAME(lighthouse_scatter),
                .backward = CPU_NAME(lighthouse_scatter_backward),
                .halo = CPU_NAME(lighthouse_halo),
                .halo_backward = CPU_NAME(lighthouse_halo_backward)},
    .swiglu = {.forward = swiglu_forward, .backward = swiglu_backward},
    .loss = {.cross_entropy = cross_entropy},
    .reduce = {.sum = sum, .sum_of_squares = sum_of_squares},
    .convert = {.accumulate_rows = accumulate_rows,
                .copy_rows = copy_rows,
                .round_rows = round_rows,
                .round_to_storage = round_to_storage},
    .optimizer = {.adamw = adamw},
};
