// A sequence in pieces. The whole sequence on one holder against the same sequence in 2·holders equal pieces, of
// which holder h has pieces h and 2·holders - 1 - h, one after the other. What crosses from piece to piece goes by
// the host.
#include "dev/test/selection/tests.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// A holder's arrays, with the shape of its two pieces.
typedef struct {
    LighthouseShape shape;
    int64_t pieces[2]; // their numbers in the whole sequence
    int32_t *positions;
    void *sub_out, *out, *halo, *grad_sub_out, *grad_out, *grad_halo;
} Holder;

static size_t halo_count(const LighthouseShape *s) {
    return (size_t)(s->pieces * s->batch * (s->levels - 1) * s->heads * s->head_dim);
}

// Takes (or, if `into_whole`, puts back) the pieces of a holder from rows [outer, row_count, width] of a
// whole sequence, of which each piece has an equal part.
static void cut_pieces(double *part, double *whole, const Holder *h, int64_t pieces, int64_t outer,
                       int64_t row_count, int64_t width, bool into_whole) {
    const int64_t length = row_count / pieces * width; // of a piece
    for (int64_t i = 0; i < outer; i++)
        for (int64_t j = 0; j < 2; j++) {
            double *here = part + (i * 2 + j) * length, *there = whole + (i * pieces + h->pieces[j]) * length;
            memcpy(into_whole ? there : here, into_whole ? here : there, (size_t)length * sizeof(double));
        }
}

static double *take_pieces(const double *whole, const Holder *h, int64_t pieces, int64_t outer,
                           int64_t row_count, int64_t width) {
    double *part = host_allocate((size_t)(outer * row_count / pieces * 2 * width), sizeof(double), "pieces");
    cut_pieces(part, (double *)whole, h, pieces, outer, row_count, width, false);
    return part;
}

// The holder's own selection, from its scores alone, has to be its part of the whole one.
static void check_pieces_selection(const Holder *h, const int32_t *local, const int32_t *whole,
                                   const LighthouseShape *shape, int64_t pieces) {
    const int64_t part = shape->entries / pieces;
    int64_t others = 0;
    for (int64_t i = 0; i < shape->batch * shape->heads; i++)
        for (int level = 0; level < shape->levels; level++)
            for (int64_t j = 0; j < level_entries(&h->shape, level); j++) {
                const int64_t length = level_entries(shape, level) / pieces, piece = h->pieces[j / length];
                const int64_t there =
                    whole[i * shape->pyramid + level_start(shape, level) + piece * length + j % length];
                const int64_t here = local[i * h->shape.pyramid + level_start(&h->shape, level) + j];
                others += (here < 0) != (there < 0) ||
                          (here >= 0 && here - j / length * part != there - piece * part);
            }
    check(others == 0, "%ld entries of pieces %ld and %ld are at other positions", (long)others,
          (long)h->pieces[0], (long)h->pieces[1]);
}

// A holder of two pieces of the whole layer: selects from its own part of the scores and gets its parts of
// sub_out and grad_out.
static Holder holder_open(const Layer *l, int64_t number, int64_t holders, const double *level_0,
                          const double *sub_out, const double *grad_out, const int32_t *whole_positions) {
    const LighthouseShape *s = &l->shape;
    Device *device = l->device;
    const StorageType storage = layer_storage(l);
    const int64_t pieces = 2 * holders, width = s->heads * s->head_dim;
    Holder h = {.shape = shape_of(s->levels, pool_of(s), s->chunks / holders * s->tile, s->tile, s->batch,
                                  s->seq_len / holders, s->heads, s->kv_heads, s->head_dim),
                .pieces = {number, pieces - 1 - number}};
    h.shape.pieces = 2;
    double *scores = take_pieces(level_0, &h, pieces, (int64_t)all_score_rows(s), s->seq_len, 1);
    double *own_sub_out = take_pieces(sub_out, &h, pieces, s->batch, s->entries, width);
    double *own_grad_out = take_pieces(grad_out, &h, pieces, s->batch, s->seq_len, width);
    int32_t *positions = select_by(device, &h.shape, scores);
    check_pieces_selection(&h, positions, whole_positions, s, pieces);
    h.positions = take_memory(device, position_count(&h.shape), STORAGE_FLOAT32);
    device->upload(device, h.positions, positions, position_count(&h.shape) * sizeof(int32_t));
    h.sub_out = take_memory(device, sub_out_count(&h.shape), storage);
    h.grad_sub_out = take_memory(device, sub_out_count(&h.shape), storage);
    h.out = take_memory(device, out_count(&h.shape), storage);
    h.grad_out = take_memory(device, out_count(&h.shape), storage);
    h.halo = take_memory(device, halo_count(&h.shape), storage);
    h.grad_halo = take_memory(device, halo_count(&h.shape), layer_accumulator(l));
    upload(device, h.sub_out, storage, own_sub_out, sub_out_count(&h.shape));
    upload(device, h.grad_out, storage, own_grad_out, out_count(&h.shape));
    double *const all[] = {scores, own_sub_out, own_grad_out};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions);
    return h;
}

static void holder_close(Device *device, Holder *h) {
    void *all[] = {h->positions, h->sub_out, h->out, h->halo, h->grad_sub_out, h->grad_out, h->grad_halo};
    for (size_t i = 0; i < COUNT_OF(all); i++) device->release(device, all[i]);
}

// Hands a halo of every piece on to the piece after it (by = 1), or back to the one before (by = -1); the
// piece at the end that nothing comes to gets zeros.
static void exchange(Device *device, Holder *holders, int64_t count, bool gradients, int64_t by) {
    const StorageType type = gradients ? accumulator_type(device->ops->storage) : device->ops->storage;
    const size_t vectors = halo_count(&holders[0].shape), of_piece = vectors / 2;
    double *all = host_allocate((size_t)(2 * count) * of_piece, sizeof(double), "halos");
    for (int64_t i = 0; i < count; i++) {
        double *own = download(device, gradients ? holders[i].grad_halo : holders[i].halo, type, vectors);
        for (int j = 0; j < 2; j++)
            memcpy(all + (size_t)holders[i].pieces[j] * of_piece, own + (size_t)j * of_piece,
                   of_piece * sizeof(double));
        free(own);
    }
    for (int64_t i = 0; i < count; i++) {
        double *own = host_allocate(vectors, sizeof(double), "halos");
        for (int j = 0; j < 2; j++) {
            const int64_t from = holders[i].pieces[j] - by;
            if (from >= 0 && from < 2 * count)
                memcpy(own + (size_t)j * of_piece, all + (size_t)from * of_piece, of_piece * sizeof(double));
        }
        upload(device, gradients ? holders[i].grad_halo : holders[i].halo, type, own, vectors);
        free(own);
    }
    free(all);
}

// What all holders make, put together: out [batch, seq_len, heads, head_dim] or grad_sub_out [batch, entries,
// heads, head_dim].
static double *scattered_by(const Layer *l, const Holder *holders, int64_t count, bool gradients,
                            bool halos) {
    const LighthouseShape *s = &l->shape;
    const Ops *ops = l->device->ops;
    const int64_t rows = gradients ? s->entries : s->seq_len, width = s->heads * s->head_dim;
    double *whole = host_allocate((size_t)(s->batch * rows * width), sizeof(double), "the whole");
    for (int64_t i = 0; i < count; i++) {
        const Holder *h = &holders[i];
        if (gradients)
            ops->scatter.backward(h->grad_sub_out, h->grad_out, halos ? h->grad_halo : NULL, h->positions,
                                  &h->shape, l->device->stream);
        else
            ops->scatter.forward(h->out, h->sub_out, halos ? h->halo : NULL, h->positions, &h->shape,
                                 l->device->stream);
        double *part = download(l->device, gradients ? h->grad_sub_out : h->out, layer_storage(l),
                                (size_t)(s->batch * rows / count * width));
        cut_pieces(part, whole, h, 2 * count, s->batch, rows, width, true);
        free(part);
    }
    return whole;
}

static double distance(const double *a, const double *b, size_t count) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(difference / norm);
}

static void check_pieces(Device *device, const LighthouseShape *shape, int64_t count) {
    enum { HOLDERS_MAX = 4 };
    Layer l = layer_open(device, shape);
    const size_t subs = sub_out_count(shape), outs = out_count(shape);
    double *level_0 = make_scores(shape, NORMAL), *sub_out = random_values(subs),
           *grad_out = random_values(outs);
    int32_t *positions = select_by(device, shape, level_0);
    set_positions(&l, positions);
    upload(device, l.layer.sub_out, layer_storage(&l), sub_out, subs);
    upload(device, l.grad_out, layer_storage(&l), grad_out, outs);
    device->ops->scatter.forward(l.out, l.layer.sub_out, NULL, l.layer.positions, shape, device->stream);
    device->ops->scatter.backward(l.layer.gathered, l.grad_out, NULL, l.layer.positions, shape,
                                  device->stream);
    double *out = download(device, l.out, layer_storage(&l), outs);
    double *grad_sub_out = download(device, l.layer.gathered, layer_storage(&l), subs);

    Holder holders[HOLDERS_MAX];
    for (int64_t i = 0; i < count; i++) {
        Holder *h = &holders[i];
        *h = holder_open(&l, i, count, level_0, sub_out, grad_out, positions);
        device->ops->scatter.halo(h->halo, h->sub_out, h->positions, &h->shape, device->stream);
        device->ops->scatter.halo_backward(h->grad_halo, h->grad_out, &h->shape, device->stream);
    }
    exchange(device, holders, count, false, 1);
    exchange(device, holders, count, true, -1);
    double *pieced_out = scattered_by(&l, holders, count, false, true);
    double *pieced_grad = scattered_by(&l, holders, count, true, true);
    double *clipped_out = scattered_by(&l, holders, count, false, false);
    double *clipped_grad = scattered_by(&l, holders, count, true, false);
    check(!memcmp(pieced_out, out, outs * sizeof(double)), "out: other bytes with %ld holders", (long)count);
    check_close("grad_sub_out", pieced_grad, grad_sub_out, subs, rounding_of(layer_storage(&l)));
    // As the published implementation clips it: tokens at the start of pieces lose most of what they get.
    check(distance(clipped_out, out, outs) > 0.02, "out is %g from the whole without what crosses",
          distance(clipped_out, out, outs));
    check(distance(clipped_grad, grad_sub_out, subs) > 0.02, "grad_sub_out is %g from the whole without it",
          distance(clipped_grad, grad_sub_out, subs));
    double *const all[] = {level_0,    sub_out,     grad_out,    out,         grad_sub_out,
                           pieced_out, pieced_grad, clipped_out, clipped_grad};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    for (int64_t i = 0; i < count; i++) holder_close(device, &holders[i]);
    free(positions);
    layer_close(&l);
}

void pieces_make_the_whole(void *argument) {
    const LighthouseShape two = shape_of(3, 4, 32, 8, 2, 576, 4, 2, 16);
    const LighthouseShape four = shape_of(4, 2, 48, 6, 1, 384, 6, 2, 8);
    const LighthouseShape eight = shape_of(2, 8, 256, 16, 1, 2432, 3, 3, 24);
    check_pieces(argument, &two, 1);
    check_pieces(argument, &two, 2);
    check_pieces(argument, &four, 2);
    check_pieces(argument, &four, 4);
    check_pieces(argument, &eight, 4);
}
