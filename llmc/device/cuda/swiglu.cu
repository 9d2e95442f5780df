// SwiGLU (arXiv 2002.05202): out = silu(gate) * up, silu(x) = x * sigmoid(x).
#include "device/cuda/operations.cuh"
#include "device/cuda/vector.cuh"

__device__ inline float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// Reads gate and up once and writes out once: 6 bytes per element of out; about 25 operations.
__global__ void swiglu_forward_kernel(bf16 *__restrict__ out, const bf16 *__restrict__ gate_up, int64_t rows,
                                      int64_t vectors) {
    const int64_t row = grid_row(), vector = grid_vector();
    if (row >= rows || vector >= vectors) return;
    const bf16 *at = gate_up + (row * 2 * vectors + vector) * WIDTH;
    const Floats<8> gate = load<8>(at), up = load<8>(at + vectors * WIDTH);
    Floats<8> result;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) result.x[i] = gate.x[i] * sigmoid(gate.x[i]) * up.x[i];
    store(out + (row * vectors + vector) * WIDTH, result);
}

static void swiglu_forward(void *out, const void *gate_up, int64_t rows, int64_t dim, Stream *stream) {
    OpScope scope(stream, "swiglu_forward", 6.0 * (double)rows * (double)dim);
    if (rows == 0) return;
    const RowGrid shape = row_grid(rows, dim / WIDTH);
    swiglu_forward_kernel<<<shape.grid, shape.block, 0, stream->cuda>>>((bf16 *)out, (const bf16 *)gate_up,
                                                                        rows, dim / WIDTH);
}

// With s = sigmoid(gate): grad_gate = grad_out * up * s * (1 + gate * (1 - s)), grad_up = grad_out * gate *
// s. Reads grad_out, gate and up once and writes both gradients once: 10 bytes per element of grad_out; about
// 30 operations.
__global__ void swiglu_backward_kernel(bf16 *__restrict__ grad_gate_up, const bf16 *__restrict__ grad_out,
                                       const bf16 *__restrict__ gate_up, int64_t rows, int64_t vectors) {
    const int64_t row = grid_row(), vector = grid_vector();
    if (row >= rows || vector >= vectors) return;
    const int64_t at = (row * 2 * vectors + vector) * WIDTH, second_half = vectors * WIDTH;
    const Floats<8> gate = load<8>(gate_up + at), up = load<8>(gate_up + at + second_half);
    const Floats<8> grad = load<8>(grad_out + (row * vectors + vector) * WIDTH);
    Floats<8> grad_gate, grad_up;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        const float s = sigmoid(gate.x[i]);
        grad_gate.x[i] = grad.x[i] * up.x[i] * s * (1.0f + gate.x[i] * (1.0f - s));
        grad_up.x[i] = grad.x[i] * gate.x[i] * s;
    }
    store(grad_gate_up + at, grad_gate);
    store(grad_gate_up + at + second_half, grad_up);
}

static void swiglu_backward(void *grad_gate_up, const void *grad_out, const void *gate_up, int64_t rows,
                            int64_t dim, Stream *stream) {
    OpScope scope(stream, "swiglu_backward", 10.0 * (double)rows * (double)dim);
    if (rows == 0) return;
    const RowGrid shape = row_grid(rows, dim / WIDTH);
    swiglu_backward_kernel<<<shape.grid, shape.block, 0, stream->cuda>>>(
        (bf16 *)grad_gate_up, (const bf16 *)grad_out, (const bf16 *)gate_up, rows, dim / WIDTH);
}

const SwigluOps cuda_swiglu = {.forward = swiglu_forward, .backward = swiglu_backward};
