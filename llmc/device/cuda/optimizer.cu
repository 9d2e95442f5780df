// One AdamW update (arXiv 1711.05101), as torch.optim.AdamW computes it.
#include "device/cuda/operations.cuh"
#include "device/cuda/vector.cuh"

#include <math.h>

// The constants of one update (AdamwStep), computed in double and rounded to float.
struct AdamwConstants {
    float gradient_scale, learning_rate, weight_decay, epsilon;
    float beta1, rest1; // rest1 = 1 - beta1
    float beta2, rest2;
    float m_correction, v_correction; // m̂ = m · m_correction, sqrt(v̂) = sqrt(v) · v_correction
};

static AdamwConstants adamw_constants(const AdamwStep *update) {
    AdamwConstants c;
    c.gradient_scale = (float)update->gradient_scale;
    c.learning_rate = (float)update->learning_rate;
    c.weight_decay = (float)update->weight_decay;
    c.epsilon = (float)update->epsilon;
    c.beta1 = (float)update->beta1;
    c.rest1 = (float)(1 - update->beta1);
    c.beta2 = (float)update->beta2;
    c.rest2 = (float)(1 - update->beta2);
    c.m_correction = (float)(1 / (1 - pow(update->beta1, (double)update->step)));
    c.v_correction = (float)(1 / sqrt(1 - pow(update->beta2, (double)update->step)));
    return c;
}

__device__ inline void adamw_element(float &master, float &m, float &v, float grad, const AdamwConstants &c) {
    const float g = c.gradient_scale * grad;
    m = c.beta1 * m + c.rest1 * g;
    v = c.beta2 * v + c.rest2 * g * g;
    const float step = m * c.m_correction / (sqrtf(v) * c.v_correction + c.epsilon);
    master -= c.learning_rate * (step + c.weight_decay * master);
}

// A thread updates a vector of 8 elements; the thread after the last whole vector updates the remaining ones.
// Reads master, m, v and grad, writes master, m, v and weights: 30 bytes per element; about 30 operations.
__global__ void __launch_bounds__(256)
    adamw_kernel(bf16 *__restrict__ weights, float *__restrict__ master, float *__restrict__ m,
                 float *__restrict__ v, const float *__restrict__ grad, int64_t count,
                 AdamwConstants constants) {
    const int64_t start = grid_thread() * WIDTH;
    if (start + WIDTH <= count) {
        Floats<8> p = load<8>(master + start), m8 = load<8>(m + start), v8 = load<8>(v + start);
        const Floats<8> g = load<8>(grad + start);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) adamw_element(p.x[i], m8.x[i], v8.x[i], g.x[i], constants);
        store(master + start, p);
        store(m + start, m8);
        store(v + start, v8);
        store(weights + start, p);
    } else {
        for (int64_t i = start; i < count; i++) {
            adamw_element(master[i], m[i], v[i], grad[i], constants);
            weights[i] = __float2bfloat16_rn(master[i]);
        }
    }
}

static void adamw(void *weights, void *master, void *m, void *v, const void *grad, int64_t count,
                  const AdamwStep *update, Stream *stream) {
    OpScope scope(stream, "adamw", 30.0 * (double)count);
    if (count == 0) return;
    const int block = 256;
    adamw_kernel<<<grid_blocks(divide_up(count, WIDTH), block), block, 0, stream->cuda>>>(
        (bf16 *)weights, (float *)master, (float *)m, (float *)v, (const float *)grad, count,
        adamw_constants(update));
}

const OptimizerOps cuda_optimizer = {.adamw = adamw};
