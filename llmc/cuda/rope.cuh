// Rotary positions, in place.
#pragma once
#include "vector.cuh"

constexpr int ROPE_HEADS = 8; // heads that a thread turns by the angles it has read
constexpr int ROPE_BATCH = 4; // heads whose loads are under way together

// A thread turns N neighbouring pairs of ROPE_HEADS heads of a token: x_j and x_{j+half} for j from a
// multiple of N. Reads and writes the rotated heads once, 4 bytes per element, and the angles once; 3
// operations per element.
template <int N>
__global__ void __launch_bounds__(256)
    rope_kernel(bf16 *__restrict__ x, const float *__restrict__ angles, int64_t tokens, int64_t seq_len,
                int heads, int rotated_heads, int half, float direction) {
    const int64_t thread = grid_thread();
    const int64_t token = thread / (half / N);
    if (token >= tokens) return;
    const int j = (int)(thread % (half / N)) * N;
    const float *angle = angles + (token % seq_len * half + j) * 2;
    const Floats<N> low = load<N>(angle), high = load<N>(angle + N); // cosine, sine, cosine, sine …
    Floats<N> cosines, sines;
#pragma unroll
    for (int i = 0; i < N; i++) {
        cosines.x[i] = 2 * i < N ? low.x[2 * i % N] : high.x[2 * i % N];
        sines.x[i] = direction * (2 * i < N ? low.x[(2 * i + 1) % N] : high.x[(2 * i + 1) % N]);
    }
    const int first_head = blockIdx.y * ROPE_HEADS;
    bf16 *token_heads = x + token * heads * 2 * half + j;
    for (int head = first_head; head < first_head + ROPE_HEADS; head += ROPE_BATCH) {
        Floats<N> a[ROPE_BATCH], b[ROPE_BATCH];
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (head + k >= rotated_heads) break;
            const bf16 *at = token_heads + (int64_t)(head + k) * 2 * half;
            a[k] = load<N>(at);
            b[k] = load<N>(at + half);
        }
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (head + k >= rotated_heads) break;
            Floats<N> turned_a, turned_b;
#pragma unroll
            for (int i = 0; i < N; i++) {
                turned_a.x[i] = a[k].x[i] * cosines.x[i] - b[k].x[i] * sines.x[i];
                turned_b.x[i] = b[k].x[i] * cosines.x[i] + a[k].x[i] * sines.x[i];
            }
            bf16 *at = token_heads + (int64_t)(head + k) * 2 * half;
            store(at, turned_a);
            store(at + half, turned_b);
        }
    }
}

static void rope(void *x, const void *angles, int64_t batch, int64_t seq_len, int heads, int rotated_heads,
                 int head_dim, bool inverse, Stream *stream) {
    const int64_t tokens = batch * seq_len;
    OpScope scope(stream, "rope",
                  4.0 * (double)tokens * rotated_heads * head_dim + 4.0 * (double)seq_len * head_dim);
    if (tokens == 0 || rotated_heads == 0) return;
    const int half = head_dim / 2, block = 256;
    const int width = half % 8 == 0 ? 8 : 4; // head_dim is a multiple of 8, half of it perhaps not
    const dim3 grid(grid_blocks(tokens * (half / width), block), grid_blocks(rotated_heads, ROPE_HEADS));
    const float direction = inverse ? -1.0f : 1.0f;
    auto kernel = width == 8 ? rope_kernel<8> : rope_kernel<4>;
    kernel<<<grid, block, 0, stream->cuda>>>((bf16 *)x, (const float *)angles, tokens, seq_len, heads,
                                             rotated_heads, half, direction);
}
