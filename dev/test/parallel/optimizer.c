// The optimizer of several ranks: its state whole or sharded, and gradients that are not finite.
#include "dev/test/parallel/tests.h"

#include "dev/test/parallel/outcome.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *weight_bytes(const Training *t, size_t *size) {
    *size = (size_t)t->weights->table.elements * storage_size(t->device->ops->storage);
    void *bytes = host_allocate(*size, 1, "weights");
    t->device->download(t->device, bytes, weights_values_from(t->weights, 0), *size);
    return bytes;
}

// The weights' bytes after three steps from the initial weights.
static void *train_three_steps(const Setup *s, bool sharded, const Sequences *sequences, size_t *size) {
    OptimizerSettings optimizer = usual_optimizer;
    optimizer.sharded = sharded;
    const DecoderSettings settings = settings_of(s, false, 2);
    Training *t =
        training_open(s->device, s->collectives, &odd_config, &settings, layer_kinds_of(s), &optimizer);
    for (int64_t step = 1; step <= 3; step++) {
        accumulate_parallel(s, t, sequences);
        double norm_here;
        const double norm = optimizer_grad_norm(t->optimizer, &norm_here);
        check(norm > 0 && norm_here > 0 && isfinite(norm_here), "gradient norms %g and %g", norm, norm_here);
        optimizer_update(t->optimizer, step, 1e-2, norm);
    }
    void *bytes = weight_bytes(t, size);
    training_close(t);
    return bytes;
}

// All ranks end with the same weights, and with the same whether the optimizer's state is sharded or not.
void sharding_changes_no_bit(void *argument) {
    const Setup *s = (const Setup *)argument;
    Sequences sequences = random_sequences(s, 2);
    size_t size;
    void *kept = train_three_steps(s, false, &sequences, &size);
    void *sharded = train_three_steps(s, true, &sequences, &size);
    check(!memcmp(kept, sharded, size), "the weights differ");
    char *all = host_allocate((size_t)s->communicator.size, size, "all weights");
    communicator_gather(&s->communicator, all, kept, size, "all weights");
    for (int rank = 1; rank < s->communicator.size; rank++)
        check(!memcmp(all, all + (size_t)rank * size, size), "rank %d has other weights", rank);
    free(all);
    free(kept);
    free(sharded);
    free_sequences(&sequences);
}

// Rank 1 (of all) spoils one element of one bucket's gradients before they are summed.
typedef struct {
    const Setup *setup;
    Training *training;
    GradientsReady reduction;
} Spoiler;

static void spoil(void *context, int bucket) {
    const Spoiler *s = (const Spoiler *)context;
    const ParameterTable *table = &s->training->weights->table;
    const double nan = NAN;
    if (bucket == table->bucket_count / 2 && s->setup->communicator.rank == 1) {
        upload(s->training->device,
               weights_gradients_from(s->training->weights, table->buckets[bucket].offset + 3),
               accumulator_of(s->training), &nan, 1);
    }
    s->reduction.call(s->reduction.context, bucket);
}

// All ranks see it, the one that it came from is known, and the next step is as if it had not been.
void a_nan_of_one_rank_reaches_all(void *argument) {
    const Setup *s = (const Setup *)argument;
    Sequences sequences = random_sequences(s, 1);
    const DecoderSettings settings = settings_of(s, false, 1);
    OptimizerSettings optimizer = usual_optimizer;
    optimizer.sharded = true;
    Training *t =
        training_open(s->device, s->collectives, &odd_config, &settings, layer_kinds_of(s), &optimizer);
    Spoiler spoiler = {s, t, optimizer_reduction(t->optimizer)};
    const GradientsReady spoiled = {spoil, &spoiler};
    size_t size;
    double norm_here;
    void *before = weight_bytes(t, &size);
    accumulate_with(s, t, &sequences, false, &spoiled);
    check(isnan(optimizer_grad_norm(t->optimizer, &norm_here)), "rank %d does not see it",
          s->communicator.rank);
    check(isnan(norm_here) == (s->communicator.rank == 1), "rank %d: its own norm is %g",
          s->communicator.rank, norm_here);
    accumulate_parallel(s, t, &sequences);
    const double norm = optimizer_grad_norm(t->optimizer, &norm_here);
    check(isfinite(norm) && norm > 0 && isfinite(norm_here), "the next step's norms are %g and %g", norm,
          norm_here);
    void *after = weight_bytes(t, &size);
    check(!memcmp(before, after, size), "the weights changed without an update");
    free(before);
    free(after);
    training_close(t);
    free_sequences(&sequences);
}
