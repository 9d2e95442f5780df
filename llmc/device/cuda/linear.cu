// Linear layers, by cuBLASLt, which takes column-major matrices. Read as column-major, the memory of a
// row-major matrix is its transpose; so a row-major product X · Y is requested as Yᵀ · Xᵀ.
#include "device/cuda/operations.cuh"
#include "device/cuda/stream.cuh"

#include <assert.h>

enum MatmulKind { LINEAR_FORWARD, LINEAR_BACKWARD_INPUT, LINEAR_BACKWARD_WEIGHT };

// A product D = op(A) · op(B) + beta · C of one kind and size, with its algorithm; C and D have the same
// layout.
struct Matmul {
    MatmulKind kind;
    int64_t rows, outputs, inputs;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    Matmul *next;
};

static const char *matmul_name(MatmulKind kind) {
    return kind == LINEAR_FORWARD          ? "linear_forward"
           : kind == LINEAR_BACKWARD_INPUT ? "linear_backward_input"
                                           : "linear_backward_weight";
}

// The column-major layout of the transpose of a row-major matrix [rows, columns].
static cublasLtMatrixLayout_t transposed_layout(cudaDataType_t type, int64_t rows, int64_t columns) {
    cublasLtMatrixLayout_t layout;
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)columns, (uint64_t)rows, columns));
    return layout;
}

static void matmul_describe(Matmul *matmul) {
    const int64_t rows = matmul->rows, outputs = matmul->outputs, inputs = matmul->inputs;
    cublasOperation_t a_op = CUBLAS_OP_N, b_op = CUBLAS_OP_N;
    switch (matmul->kind) {
        case LINEAR_FORWARD: // outᵀ = weight · aᵀ
            matmul->a = transposed_layout(CUDA_R_16BF, outputs, inputs);
            matmul->b = transposed_layout(CUDA_R_16BF, rows, inputs);
            matmul->d = transposed_layout(CUDA_R_16BF, rows, outputs);
            a_op = CUBLAS_OP_T;
            break;
        case LINEAR_BACKWARD_INPUT: // grad_aᵀ = weightᵀ · grad_outᵀ
            matmul->a = transposed_layout(CUDA_R_16BF, outputs, inputs);
            matmul->b = transposed_layout(CUDA_R_16BF, rows, outputs);
            matmul->d = transposed_layout(CUDA_R_16BF, rows, inputs);
            break;
        case LINEAR_BACKWARD_WEIGHT: // grad_weightᵀ = aᵀ · grad_out
            matmul->a = transposed_layout(CUDA_R_16BF, rows, inputs);
            matmul->b = transposed_layout(CUDA_R_16BF, rows, outputs);
            matmul->d = transposed_layout(CUDA_R_32F, outputs, inputs);
            b_op = CUBLAS_OP_T;
            break;
    }
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&matmul->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(matmul->product, CUBLASLT_MATMUL_DESC_TRANSA, &a_op, sizeof(a_op)));
    CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(matmul->product, CUBLASLT_MATMUL_DESC_TRANSB, &b_op, sizeof(b_op)));
}

// The alignment and workspace that an algorithm may use. If it splits the inner dimension, it has to add up
// the parts in the workspace in float: this is deterministic and rounds once.
static cublasLtMatmulPreference_t matmul_preference() {
    const size_t workspace = WORKSPACE_BYTES;
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, alignment = 16;
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &workspace, sizeof(workspace)));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                      &reductions, sizeof(reductions)));
    const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (cublasLtMatmulPreferenceAttributes_t attribute : alignments)
        CUBLAS_CHECK(
            cublasLtMatmulPreferenceSetAttribute(preference, attribute, &alignment, sizeof(alignment)));
    return preference;
}

static void matmul_choose(Matmul *matmul, Stream *stream) {
    cublasLtMatmulPreference_t preference = matmul_preference();
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(stream->cublaslt, matmul->product, matmul->a, matmul->b, matmul->d,
                                       matmul->d, preference, 1, &result, &found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (status == CUBLAS_STATUS_SUCCESS && found > 0) status = result.state;
    if (status != CUBLAS_STATUS_SUCCESS || found == 0)
        fatal("cuBLASLt has no way to compute %s of %ld rows, %ld outputs and %ld inputs: %s",
              matmul_name(matmul->kind), (long)matmul->rows, (long)matmul->outputs, (long)matmul->inputs,
              cublasLtGetStatusString(status));
    matmul->algorithm = result.algo;
}

// The Matmul for this product. Its algorithm is chosen at the first call and never changes, so that results
// do not.
static const Matmul *matmul_find(MatmulKind kind, int64_t rows, int64_t outputs, int64_t inputs,
                                 Stream *stream) {
    for (const Matmul *matmul = stream->matmuls; matmul; matmul = matmul->next)
        if (matmul->kind == kind && matmul->rows == rows && matmul->outputs == outputs &&
            matmul->inputs == inputs)
            return matmul;
    Matmul *matmul = (Matmul *)host_allocate(1, sizeof(Matmul), "a matrix product");
    matmul->kind = kind;
    matmul->rows = rows;
    matmul->outputs = outputs;
    matmul->inputs = inputs;
    matmul_describe(matmul);
    matmul_choose(matmul, stream);
    matmul->next = stream->matmuls;
    stream->matmuls = matmul;
    return matmul;
}

void matmuls_free(Stream *stream) {
    while (stream->matmuls) {
        Matmul *matmul = stream->matmuls;
        stream->matmuls = matmul->next;
        CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(matmul->a));
        CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(matmul->b));
        CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(matmul->d));
        CUBLAS_CHECK(cublasLtMatmulDescDestroy(matmul->product));
        free(matmul);
    }
}

// D = op(A) · op(B) + C; C may be NULL. `bytes`: of all operands, for the profile.
static void matmul_run(MatmulKind kind, void *d, const void *a, const void *b, const void *c, int64_t rows,
                       int64_t outputs, int64_t inputs, double bytes, Stream *stream) {
    const double flops = 2.0 * (double)rows * (double)outputs * (double)inputs;
    OpScope scope(stream, matmul_name(kind), bytes, flops, {rows, outputs, inputs});
    if (rows == 0) return;
    assert(outputs % 8 == 0 && inputs % 8 == 0);
    assert(((uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d) % 16 == 0);
    const Matmul *matmul = matmul_find(kind, rows, outputs, inputs, stream);
    const float alpha = 1, beta = c ? 1 : 0;
    CUBLAS_CHECK(cublasLtMatmul(stream->cublaslt, matmul->product, &alpha, a, matmul->a, b, matmul->b, &beta,
                                c ? c : d, matmul->d, d, matmul->d, &matmul->algorithm, stream->workspace,
                                WORKSPACE_BYTES, stream->cuda));
}

static void linear_forward(void *out, const void *a, const void *weight, const void *addend, int64_t rows,
                           int64_t outputs, int64_t inputs, Stream *stream) {
    const double bytes = 2.0 * ((double)outputs * (double)inputs + (double)rows * (double)inputs) +
                         (addend ? 4.0 : 2.0) * (double)rows * (double)outputs;
    matmul_run(LINEAR_FORWARD, out, weight, a, addend, rows, outputs, inputs, bytes, stream);
}

static void linear_backward_input(void *grad_a, const void *grad_out, const void *weight, int64_t rows,
                                  int64_t outputs, int64_t inputs, Stream *stream) {
    const double bytes = 2.0 * ((double)outputs * (double)inputs + (double)rows * (double)(inputs + outputs));
    matmul_run(LINEAR_BACKWARD_INPUT, grad_a, weight, grad_out, NULL, rows, outputs, inputs, bytes, stream);
}

static void linear_backward_weight(void *grad_weight, const void *grad_out, const void *a, int64_t rows,
                                   int64_t outputs, int64_t inputs, Stream *stream) {
    const double bytes =
        8.0 * (double)outputs * (double)inputs + 2.0 * (double)rows * (double)(inputs + outputs);
    matmul_run(LINEAR_BACKWARD_WEIGHT, grad_weight, a, grad_out, grad_weight, rows, outputs, inputs, bytes,
               stream);
}

const LinearOps cuda_linear = {.forward = linear_forward,
                               .backward_input = linear_backward_input,
                               .backward_weight = linear_backward_weight};
