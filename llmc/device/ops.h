// The operations a decoder needs, as groups of functions with their contracts.
//
// Shared code (model, attention, optimizer) calls these and nothing else: ops->linear.forward(…). Of the two
// folders that implement them, llmc/device/cpu and llmc/device/cuda, each has a file for each group, of the
// group's name.
//
// Conventions. Outputs first, then inputs, then sizes, stream last. All pointers are device memory. In
// comments S[...] is an array of the device's storage type (float64, float32 or bfloat16: weights and
// activations) and A[...] one of its accumulator type (float64 for float64 storage, else float32: gradients
// of weights, master weights, moments, statistics). Matrices are row-major. Arithmetic is in the accumulator
// type (and reductions at least that); a result is rounded once, when it is stored. Nothing allocates,
// nothing synchronizes with the host, nothing keeps state between calls; work is queued on `stream`, in
// order. Every operation gives the same bits for the same inputs on the same device, except
// attention.backward when its shape says `deterministic = false`.
#pragma once
#include "base/reason.h"
#include "base/storage.h"
#include "device/shapes.h"

// A queue of operations, with what the libraries behind them need (handles, a small workspace). Opaque here.
typedef struct Stream Stream;

// --- embedding ---------------------------------------------------------------------------------------------

typedef struct {
    // out S[rows, dim] = weight S[vocab, dim] at tokens int32[rows], each in [0, vocab).
    void (*forward)(void *out, const void *weight, const int32_t *tokens, int64_t rows, int64_t dim,
                    int64_t vocab, Stream *stream);

    // grad_weight A[vocab, dim] += the sum of grad_out S[rows, dim] over the rows of each token, in a fixed
    // order.
    void (*backward)(void *grad_weight, const void *grad_out, const int32_t *tokens, int64_t rows,
                     int64_t dim, int64_t vocab, Stream *stream);
} EmbeddingOps;

// --- normalization (arXiv 1910.07467) ----------------------------------------------------------------------

typedef struct {
    // rstd A[rows] = 1 / sqrt(mean(x^2) + epsilon); out S[rows, dim] = x * rstd * weight S[dim].
    void (*forward)(void *out, void *rstd, const void *x, const void *weight, int64_t rows, int64_t dim,
                    double epsilon, Stream *stream);

    // grad_x S[rows, dim] = grad_residual S[rows, dim] + the norm's own gradient: the residual stream goes
    // past the norm as well. grad_residual may be grad_x itself, or NULL for zero. grad_weight A[dim] += sum
    // over rows of grad_out * x * rstd.
    void (*backward)(void *grad_x, void *grad_weight, const void *grad_residual, const void *grad_out,
                     const void *x, const void *weight, const void *rstd, int64_t rows, int64_t dim,
                     Stream *stream);
} RmsnormOps;

// --- linear layers: out = a · weightᵀ, weight stored [outputs, inputs] -------------------------------------

typedef struct {
    // out S[rows, outputs] = a S[rows, inputs] · weight S[outputs, inputs]ᵀ (+ addend S[rows, outputs] if not
    // NULL; addend may be out itself). One rounding, after the addition.
    void (*forward)(void *out, const void *a, const void *weight, const void *addend, int64_t rows,
                    int64_t outputs, int64_t inputs, Stream *stream);

    // grad_a S[rows, inputs] = grad_out S[rows, outputs] · weight S[outputs, inputs].
    void (*backward_input)(void *grad_a, const void *grad_out, const void *weight, int64_t rows,
                           int64_t outputs, int64_t inputs, Stream *stream);

    // grad_weight A[outputs, inputs] += grad_out S[rows, outputs]ᵀ · a S[rows, inputs].
    void (*backward_weight)(void *grad_weight, const void *grad_out, const void *a, int64_t rows,
                            int64_t outputs, int64_t inputs, Stream *stream);
} LinearOps;

// --- rotary positions (arXiv 2104.09864, rotate-half convention) -------------------------------------------

typedef struct {
    // In place on the first `rotated_heads` of the `heads` heads of x S[batch, seq_len, heads, head_dim]:
    // with j < head_dim/2, (x_j, x_{j+head_dim/2}) turns by the angle whose cosine and sine stand at angles
    // A[seq_len, head_dim/2, 2]. `inverse` turns back, which is the backward. If norms is not NULL, the
    // Euclidean norm of each turned head, of the values as they are stored, goes to
    // norms A[batch, rotated_heads, norms_stride], of whose rows the first seq_len elements are written.
    void (*rotate)(void *x, void *norms, int64_t norms_stride, const void *angles, int64_t batch,
                   int64_t seq_len, int heads, int rotated_heads, int head_dim, bool inverse, Stream *stream);

    // The same norms, to the bit, of heads that are not turned: of the first `normed_heads` of the `heads`
    // heads of x S[batch, seq_len, heads, head_dim], to norms A[batch, normed_heads, norms_stride].
    void (*norms)(void *norms, int64_t norms_stride, const void *x, int64_t batch, int64_t seq_len, int heads,
                  int normed_heads, int head_dim, Stream *stream);

    // In place on the queries and keys of gathered S[batch, entries, 3*heads, head_dim] (as gather makes it;
    // values stay): each selected entry (level, index) of the pyramid turns as the last token that it covers
    // would, (index+1)·pool^level - 1, by angles A[seq_len, head_dim/2, 2]. `inverse` turns back, which is the
    // backward.
    void (*rotate_entries)(void *gathered, const int32_t *positions, const void *angles,
                           const LighthouseShape *shape, bool inverse, Stream *stream);
} RopeOps;

// --- attention ---------------------------------------------------------------------------------------------

typedef struct {
    // Bytes that forward (backward = false) or backward needs as its `workspace`.
    size_t (*workspace)(const AttentionShape *shape, bool backward, Stream *stream);

    // out S = softmax(scale · q · kᵀ) · v; logsumexp A[batch, heads, query_len] (natural log, of the scaled
    // scores). Both laid out as the shape's strides say.
    void (*forward)(void *out, void *logsumexp, const void *query, const void *key, const void *value,
                    const AttentionShape *shape, void *workspace, Stream *stream);

    // Gradients of the queries, keys and values of this shape, written (not added). `out` and `logsumexp` are
    // those of the *whole* softmax, of which this shape's keys may be a part: softmax pieces merge exactly so
    // (P = exp(scale·q·k - logsumexp), grad_score = P·(grad_out·v - grad_out·out)). Gradients of a key/value
    // head sum over its query heads.
    void (*backward)(void *grad_query, void *grad_key, void *grad_value, const void *grad_out,
                     const void *query, const void *key, const void *value, const void *out,
                     const void *logsumexp, const AttentionShape *shape, void *workspace, Stream *stream);

    // Merges the softmax over one more set of keys into the one so far: with a = logsumexp, b =
    // part_logsumexp and c = log(exp(a) + exp(b)), which cannot overflow,
    //   sum = exp(a-c)·sum + exp(b-c)·part;  logsumexp = c.
    // sum A and logsumexp A are laid out as the shape's `output` and `logsumexp` say; part
    // S[batch, query_len, heads, head_dim] and part_logsumexp A[batch, heads, query_len] have no gaps.
    // Nothing else of the shape is read. `first`: there is nothing so far, and sum and logsumexp are only
    // written. -infinity as a log-sum-exp means no keys: the vector that comes with it counts for nothing,
    // whatever it holds.
    void (*merge)(void *sum, void *logsumexp, const void *part, const void *part_logsumexp,
                  const AttentionShape *shape, bool first, Stream *stream);
} AttentionOps;

// --- Lighthouse attention (arXiv 2605.06554): all around the inner attention -------------------------------
//
// LighthouseShape says what levels, entries, chunks and pieces are. No atomics on floating point: every
// result is one sum in a fixed order, in the accumulator type, rounded once.

// Which entries of its pyramid a head picks.
typedef struct {
    // Whether the device can do this shape; if not, why, for the user.
    bool (*supported)(const LighthouseShape *shape, Reason *reason, const Stream *stream);

    // Fills the coarser levels of scores A[batch, heads + key_score_heads, pyramid] (query heads, then key heads)
    // from level 0: the maximum over the tokens covered. NaN counts as -infinity; level 0 is left as it is.
    void (*pool_scores)(void *scores, const LighthouseShape *shape, Stream *stream);

    // positions int32[batch, heads, pyramid]: where in the subsequence an entry stands, in [0, entries), or
    // -1 if it is not selected. Per batch, query head and chunk, from the coarsest level to level 1: of the
    // candidates (at the coarsest level all of the chunk, then the children of the level above's parents) the
    // tile/2 with the largest query scores, and of the rest the tile/2 with the largest key scores (of the
    // head's key head), become parents; ties go to the lower index. Every candidate of any level is selected.
    // Chunk g fills the positions from g·entries/chunks on, in post-order: children from left to right, then
    // their parent.
    void (*select)(int32_t *positions, const void *scores, const LighthouseShape *shape, Stream *stream);
} SelectionOps;

// From the sequence to the subsequence of the selected entries.
typedef struct {
    // gathered S[batch, entries, 3*heads, head_dim] (queries, keys, values: the packed layout with a
    // key/value head per query head) = the means over each selected entry's tokens of qkv S[batch, seq_len,
    // heads + 2*kv_heads, head_dim].
    void (*forward)(void *gathered, const void *qkv, const int32_t *positions, const LighthouseShape *shape,
                    Stream *stream);

    // Its transpose: grad_qkv of a token = the sum over the levels, from 0 up, of 1/pool^level ·
    // grad_gathered of the entry that covers it, if selected; keys and values also sum over the query heads
    // of their group, in order. With angles A[seq_len, head_dim/2, 2] (NULL: without) the gradients of
    // queries and keys are then turned back as rope's inverse does, before the one rounding.
    void (*backward)(void *grad_qkv, const void *grad_gathered, const int32_t *positions, const void *angles,
                     const LighthouseShape *shape, Stream *stream);
} GatherOps;

// From the subsequence back to the sequence. Of a sequence in pieces, the output of a piece's last entry of a
// level (from level 1 on) goes to the first pool^level - 1 tokens of the next piece, which another rank may
// hold. What so crosses a border is a halo [pieces, batch, levels - 1, heads, head_dim], of levels 1 to
// levels - 1.
typedef struct {
    // out S[batch, seq_len, heads, head_dim]: the token numbered u in its piece sums, from level 0 up,
    // sub_out S[batch, entries, heads, head_dim] of the piece's entry of index (u+1)/pool^level - 1 (rounded
    // down) of each level, if it is selected: an entry's output goes to tokens from its last one on, never
    // before. Zero if there is none. Where the index is -1 the entry is the last of the piece before, whose
    // output stands in halo S[pieces, batch, levels-1, heads, head_dim], at this piece; NULL: nothing comes
    // from before.
    void (*forward)(void *out, const void *sub_out, const void *halo, const int32_t *positions,
                    const LighthouseShape *shape, Stream *stream);

    // Its transpose: grad_sub_out of a selected entry = the sum of grad_out over the tokens its output went
    // to: [(index+1)·pool^level - 1, (index+2)·pool^level - 2], cut off at the end of its piece. Of a piece's
    // last entry of each level from 1 on, grad_halo A[pieces, batch, levels-1, heads, head_dim], at this
    // piece, is added to the sum: what the tokens after it hand back. NULL: nothing.
    void (*backward)(void *grad_sub_out, const void *grad_out, const void *grad_halo,
                     const int32_t *positions, const LighthouseShape *shape, Stream *stream);

    // halo S[pieces, batch, levels-1, heads, head_dim] = sub_out of the last entry of each level from 1 on of
    // each piece; zeros if it is not selected. For the forward of the piece after.
    void (*halo)(void *halo, const void *sub_out, const int32_t *positions, const LighthouseShape *shape,
                 Stream *stream);

    // Its transpose's other half, by the holder of the piece after: grad_halo A[pieces, batch, levels-1,
    // heads, head_dim] = the sum of grad_out S[batch, seq_len, heads, head_dim] over the first pool^level - 1
    // tokens of each piece. For the backward of the piece before.
    void (*halo_backward)(void *grad_halo, const void *grad_out, const LighthouseShape *shape,
                          Stream *stream);
} ScatterOps;

// --- feed-forward: SwiGLU (arXiv 2002.05202) ---------------------------------------------------------------

typedef struct {
    // gate_up S[rows, 2*dim] holds gate in its first half of columns and up in its second;
    // out S[rows, dim] = silu(gate) * up.
    void (*forward)(void *out, const void *gate_up, int64_t rows, int64_t dim, Stream *stream);

    // grad_gate_up S[rows, 2*dim] from grad_out S[rows, dim]; grad_gate_up may not be gate_up.
    void (*backward)(void *grad_gate_up, const void *grad_out, const void *gate_up, int64_t rows, int64_t dim,
                     Stream *stream);
} SwigluOps;

// --- loss --------------------------------------------------------------------------------------------------

typedef struct {
    // losses A[rows] = logsumexp(logits) - logits[target] for logits S[rows, vocab], targets int32[rows].
    // With gradient_scale != 0, logits become their gradient in place: gradient_scale · (softmax -
    // onehot(target)). With gradient_scale = 0 logits are left alone.
    void (*cross_entropy)(void *losses, void *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                          double gradient_scale, Stream *stream);
} LossOps;

// --- reductions --------------------------------------------------------------------------------------------

typedef struct {
    // out double[1] = the sum of x A[count].
    void (*sum)(double *out, const void *x, int64_t count, Stream *stream);

    // out double[1] = the sum of squares of x A[count].
    void (*sum_of_squares)(double *out, const void *x, int64_t count, Stream *stream);
} ReduceOps;

// --- conversions -------------------------------------------------------------------------------------------

typedef struct {
    // Blocks of rows that lie out_stride and in_stride elements apart.
    // out A[rows, columns] += in S[rows, columns].
    void (*accumulate_rows)(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                            int64_t columns, Stream *stream);
    // out S[rows, columns] = in S[rows, columns].
    void (*copy_rows)(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                      int64_t columns, Stream *stream);
    // out S[rows, columns] = in A[rows, columns], rounded.
    void (*round_rows)(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                       int64_t columns, Stream *stream);

    // out S[count] = in A[count], rounded.
    void (*round_to_storage)(void *out, const void *in, int64_t count, Stream *stream);
} ConvertOps;

// --- optimizer (arXiv 1711.05101) --------------------------------------------------------------------------

// The numbers of one AdamW update.
typedef struct {
    int64_t step; // counts from 1: the exponent of the bias corrections
    double learning_rate, beta1, beta2, epsilon;
    double weight_decay;
    double gradient_scale; // the gradient is multiplied by this first (clipping)
} AdamwStep;

typedef struct {
    // With g = gradient_scale · grad, all in the accumulator type:
    //   m = beta1·m + (1-beta1)·g;  v = beta2·v + (1-beta2)·g²
    //   master -= learning_rate · (m̂ / (sqrt(v̂) + epsilon) + weight_decay · master),
    //   m̂ = m / (1 - beta1^step), v̂ = v / (1 - beta2^step), as torch.optim.AdamW computes it; weights S =
    //   rounded master. weights S[count], master, m, v, grad A[count].
    void (*adamw)(void *weights, void *master, void *m, void *v, const void *grad, int64_t count,
                  const AdamwStep *update, Stream *stream);
} OptimizerOps;

// A device's operations.
typedef struct Ops {
    StorageType storage;
    EmbeddingOps embedding;
    RmsnormOps rmsnorm;
    LinearOps linear;
    RopeOps rope;
    AttentionOps attention;
    SelectionOps selection;
    GatherOps gather;
    ScatterOps scatter;
    SwigluOps swiglu;
    LossOps loss;
    ReduceOps reduce;
    ConvertOps convert;
    OptimizerOps optimizer;
} Ops;
