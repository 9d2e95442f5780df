// Steps of several ranks against the same step of one: run by mpirun, every rank the same tests.
#include "selections.h"
#include "small_model.h"

#include "model/attention.h"
#include "parallel/sequence_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// 16 chunks of 5 coarsest entries: up to 8 ranks can share a sequence. BATCH: sequences of a micro-step.
enum { SEQ_LEN = 320, HEADS = 6, KV_HEADS = 2, SELECTING_LAYERS = 2, BATCH = 2 };

typedef struct {
    Device *device;
    Communicator communicator; // divided for this setup
    Collectives *collectives;
    bool selection;
} Setup;

static Group data_group(const Setup *s) {
    return s->communicator.groups[GROUP_DATA];
}
static Group context_group(const Setup *s) {
    return s->communicator.groups[GROUP_CONTEXT];
}

static DecoderSettings settings_of(const Setup *s, bool whole, int64_t micro_steps) {
    DecoderSettings settings = {.batch = BATCH,
                                .seq_len = whole ? SEQ_LEN : SEQ_LEN / context_group(s).size,
                                .micro_steps = micro_steps,
                                .deterministic = true,
                                .lighthouse = {3, 2, 64, 4}};
    return settings;
}

static const LayerKind *layer_kinds_of(const Setup *s) {
    return s->selection ? odd_layer_kinds : NULL;
}

static double tolerance_of(const Setup *s) {
    const StorageType storage = s->device->ops->storage;
    return storage == STORAGE_FLOAT64 ? 1e-10 : storage == STORAGE_FLOAT32 ? 1e-5 : 2e-2;
}

// --- one table's values in another's layout -------------------------------------------------------------

// From the layout of a table for several ranks to that for one (spread: the other way).
static double *relaid(const ParameterTable *table, const double *values, bool spread) {
    double *other =
        host_allocate((size_t)(spread ? table->elements : table->flat_elements), sizeof(double), "values");
    for (int i = 0; i < table->bucket_count; i++) {
        const ParameterBucket *b = &table->buckets[i];
        memcpy(other + (spread ? b->offset : b->flat_offset), values + (spread ? b->flat_offset : b->offset),
               (size_t)b->flat_count * sizeof(double));
    }
    return other;
}

// --- a step on one rank and on all ----------------------------------------------------------------------

// `micro_steps` micro-steps for each data-parallel group.
typedef struct {
    int batches;
    int32_t *inputs, *targets; // [batches, BATCH, SEQ_LEN]
} Sequences;

static void random_tokens(int32_t *tokens, int64_t count) {
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
}

static Sequences random_sequences(const Setup *s, int64_t micro_steps) {
    Sequences sequences = {.batches = (int)micro_steps * data_group(s).size};
    const size_t tokens = (size_t)sequences.batches * BATCH * SEQ_LEN;
    sequences.inputs = host_allocate(tokens, sizeof(int32_t), "tokens");
    sequences.targets = host_allocate(tokens, sizeof(int32_t), "tokens");
    random_tokens(sequences.inputs, (int64_t)tokens);
    random_tokens(sequences.targets, (int64_t)tokens);
    return sequences;
}

static void free_sequences(Sequences *sequences) {
    free(sequences->inputs);
    free(sequences->targets);
}

typedef struct {
    double loss;
    double *gradients; // as one rank's table has them
    Selections selections;
} Outcome;

static void free_outcome(Outcome *outcome) {
    free(outcome->gradients);
    free_selections(&outcome->selections);
}

// The sequences as one rank's micro-steps, or as the parts that the ranks of a setup train on.
typedef struct {
    const Setup *setup; // NULL: one rank
    const Sequences *sequences;
} SequenceSource;

// int32[tokens]: what a rank holds of a whole sequence.
static void slice(int32_t *out, const int32_t *sequence, Group context, int64_t tokens) {
    const int64_t pieces = context_pieces(context), length = tokens / pieces;
    for (int64_t piece = 0; piece < pieces; piece++)
        memcpy(out + piece * length, sequence + context_position(context, tokens, piece * length),
               (size_t)length * sizeof(*out));
}

static void read_sequences(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const SequenceSource *source = (const SequenceSource *)context;
    const Group alone = {0, 1};
    const Group data = source->setup ? data_group(source->setup) : alone;
    const Group group = source->setup ? context_group(source->setup) : alone;
    const int64_t batch = micro_step * data.size + data.rank, tokens = SEQ_LEN / group.size;
    for (int64_t row = 0; row < BATCH; row++) {
        const int64_t start = (batch * BATCH + row) * SEQ_LEN;
        slice(inputs + row * tokens, source->sequences->inputs + start, group, tokens);
        slice(targets + row * tokens, source->sequences->targets + start, group, tokens);
    }
}

static Training *whole_training(const Setup *s, int64_t micro_steps, const double *weights) {
    const DecoderSettings settings = settings_of(s, true, micro_steps);
    Training *t = training_open(s->device, NULL, &odd_config, &settings, layer_kinds_of(s), &usual_optimizer);
    set_weights(t, weights);
    return t;
}

static Outcome step_of_one(const Setup *s, const double *weights, const Sequences *sequences) {
    Training *t = whole_training(s, sequences->batches, weights);
    Outcome outcome = {0};
    SequenceSource all = {NULL, sequences};
    const BatchSource source = {read_sequences, &all};
    const StepAttention attention = training_attention(t, true);
    record_selections(s->device, &outcome.selections);
    step_accumulate(t, &attention, &source, NULL);
    stop_recording();
    outcome.loss = decoder_losses(t->decoder);
    outcome.gradients = get_gradients(t);
    training_close(t);
    return outcome;
}

static void accumulate_with(const Setup *s, Training *t, const Sequences *sequences, bool replay,
                            const GradientsReady *ready) {
    SequenceSource parts = {s, sequences};
    const BatchSource source = {read_sequences, &parts};
    StepAttention attention = training_attention(t, true);
    attention.replay = replay;
    step_accumulate(t, &attention, &source, ready);
}

static void accumulate_parallel(const Setup *s, Training *t, const Sequences *sequences) {
    const GradientsReady reduction = optimizer_reduction(t->optimizer);
    accumulate_with(s, t, sequences, false, &reduction);
}

static Training *parallel_training(const Setup *s, DecoderSettings settings, bool sharded,
                                   const double *weights) {
    OptimizerSettings optimizer = usual_optimizer;
    optimizer.sharded = sharded;
    Training *t =
        training_open(s->device, s->collectives, &odd_config, &settings, layer_kinds_of(s), &optimizer);
    double *spread = relaid(&t->weights->table, weights, true);
    set_weights(t, spread);
    free(spread);
    return t;
}

// A step's outcome, but for what it selected.
static Outcome outcome_of(const Setup *s, Training *t) {
    Outcome outcome = {.loss = decoder_losses(t->decoder)};
    communicator_sum(&s->communicator, &outcome.loss, 1, "the loss");
    optimizer_grad_norm(t->optimizer, NULL); // waits for the sums
    double *gradients = get_gradients(t);
    outcome.gradients = relaid(&t->weights->table, gradients, false);
    free(gradients);
    return outcome;
}

static Outcome step_of_all(const Setup *s, Training *t, const Sequences *sequences, bool replay) {
    const GradientsReady reduction = optimizer_reduction(t->optimizer);
    Selections selections = {0};
    record_selections(s->device, &selections);
    accumulate_with(s, t, sequences, replay, &reduction);
    stop_recording();
    Outcome outcome = outcome_of(s, t);
    outcome.selections = selections;
    return outcome;
}

static double *shared_weights(void) {
    ParameterTable table = parameter_table_create(&odd_config, 1);
    double *weights = odd_weights(&table);
    parameter_table_free(&table);
    return weights;
}

// --- selections -----------------------------------------------------------------------------------------

static LighthouseShape whole_shape(void) {
    const LighthouseSettings settings = {3, 2, 64, 4};
    return lighthouse_shape(&settings, BATCH, SEQ_LEN, HEADS, KV_HEADS, 32);
}

// Where entry i of a level of this rank's pyramid stands in the whole sequence's; *pieces is how many pieces
// of other ranks lie between.
static int64_t place_in_whole(const Setup *s, int level, int64_t i, int64_t *pieces) {
    const LighthouseShape all = whole_shape(), part = lighthouse_part(all, context_group(s).size);
    const int64_t piece_tokens = part.seq_len / part.pieces;
    const int64_t piece_entries = level_entries(&part, level) / part.pieces, piece = i / piece_entries;
    *pieces = context_position(context_group(s), part.seq_len, piece * piece_tokens) / piece_tokens - piece;
    return level_start(&all, level) + i + *pieces * piece_entries;
}

// What this rank holds of a selection of whole sequences.
static Selection selection_here(const Setup *s, const Selection *whole) {
    const LighthouseShape all = whole_shape(), part = lighthouse_part(all, context_group(s).size);
    const int64_t rows_of_positions = BATCH * HEADS, rows_of_scores = BATCH * score_rows(&part);
    Selection here = selection_of(&part);
    for (int level = 0; level < all.levels; level++)
        for (int64_t i = 0; i < level_entries(&part, level); i++) {
            int64_t pieces;
            const int64_t from = place_in_whole(s, level, i, &pieces), to = level_start(&part, level) + i;
            for (int64_t row = 0; row < rows_of_positions; row++) {
                const int32_t position = whole->positions[row * all.pyramid + from];
                const int64_t before = pieces * (part.entries / part.pieces);
                here.positions[row * part.pyramid + to] = position < 0 ? -1 : position - (int32_t)before;
            }
            for (int64_t row = 0; row < rows_of_scores; row++)
                here.scores[row * part.pyramid + to] = whole->scores[row * all.pyramid + from];
        }
    return here;
}

// Random sequences without near-ties in any selection of one rank's. (In bfloat16 there always are some.)
static Sequences clear_sequences(const Setup *s, const double *weights, int64_t micro_steps) {
    Sequences sequences = random_sequences(s, micro_steps);
    if (!s->selection || s->device->ops->storage == STORAGE_BFLOAT16) return sequences;
    Training *t = whole_training(s, 1, weights);
    const StepAttention attention = training_attention(t, true);
    for (int i = 0; i < sequences.batches; i++) {
        int32_t *inputs = sequences.inputs + i * BATCH * SEQ_LEN;
        const int32_t *targets = sequences.targets + i * BATCH * SEQ_LEN;
        for (bool clear = false; !clear;) {
            Selections selections = {0};
            record_selections(s->device, &selections);
            decoder_evaluate(t->decoder, &attention, inputs, targets);
            stop_recording();
            clear = smallest_gap(&selections) >= selection_margin(s->device);
            clear = communicator_all(&s->communicator, clear, "whether a selection is clear");
            free_selections(&selections);
            if (!clear) random_tokens(inputs, BATCH * SEQ_LEN);
        }
    }
    training_close(t);
    return sequences;
}

// One rank's selections that are to be compared with the parts': the whole's of the micro-steps that this
// rank had a part in.
static const Selection *counterpart(const Setup *s, const Outcome *whole, int i) {
    const Group data = data_group(s);
    const int layers = SELECTING_LAYERS, micro_step = i / layers;
    return &whole->selections.list[(micro_step * data.size + data.rank) * layers + i % layers];
}

static double largest_difference(const double *a, const double *b, int64_t count) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const double difference = fabs(a[i] - b[i]) / fabs(b[i]);
        if (isnan(difference)) return INFINITY;
        largest = fmax(largest, difference);
    }
    return largest;
}

// Says which entry is the first to be picked by one side only, and how near to a tie it was.
static void report_pick(int i, const Selection *expected, const Selection *got) {
    const LighthouseShape part = got->shape;
    const double rounding = largest_difference(got->scores, expected->scores, score_count(&part));
    for (int64_t row = 0; row < BATCH * HEADS; row++)
        for (int level = part.levels - 1; level > 0; level--) {
            const int64_t entries = level_entries(&part, level), below = level_start(&part, level - 1);
            for (int64_t entry = 0; entry < entries; entry++) {
                // An entry is picked if its first child is in the sequence.
                const int64_t child = row * part.pyramid + below + (entry << part.log2_pool);
                if ((expected->positions[child] < 0) == (got->positions[child] < 0)) continue;
                check(false,
                      "micro-step %d, selecting layer %d, sequence %ld, head %ld, level %d: entry %ld is "
                      "picked by %s only; the picks' gap was %.2g, and scores differ by at most %.2g",
                      i / SELECTING_LAYERS, i % SELECTING_LAYERS, (long)(row / HEADS), (long)(row % HEADS),
                      level, (long)entry, got->positions[child] < 0 ? "one rank" : "us",
                      cut_gap(expected, row, entry / (entries / part.chunks), level), rounding);
                return;
            }
        }
    check(false, "micro-step %d, selecting layer %d: the same picks, in another order", i / SELECTING_LAYERS,
          i % SELECTING_LAYERS);
}

// Every micro-step's selection, and the scores it was made from, against one rank's. Where ranks differ,
// those that do first say how: what comes after that is another function.
static void check_selections(const Setup *s, const Outcome *part, const Outcome *whole) {
    const LighthouseShape shape = lighthouse_part(whole_shape(), context_group(s).size);
    const size_t bytes = (size_t)position_count(&shape) * sizeof(int32_t);
    for (int i = 0; i < part->selections.count; i++) {
        const Selection *got = &part->selections.list[i];
        Selection expected = selection_here(s, counterpart(s, whole, i));
        const bool same = !memcmp(expected.positions, got->positions, bytes);
        const double difference = largest_difference(got->scores, expected.scores, score_count(&shape));
        if (same)
            check(difference <= selection_margin(s->device) / 2,
                  "micro-step %d, selecting layer %d: a score is off by %.2g", i / SELECTING_LAYERS,
                  i % SELECTING_LAYERS, difference);
        else
            report_pick(i, &expected, got);
        free_selection(&expected);
        if (!communicator_all(&s->communicator, same, "whether a selection is one rank's")) return;
    }
}

// How many places of the selections differ from the whole sequences', of how many.
static int64_t different_picks(const Setup *s, const Outcome *part, const Outcome *whole, int64_t *of) {
    const LighthouseShape shape = lighthouse_part(whole_shape(), context_group(s).size);
    const int64_t count = position_count(&shape);
    int64_t different = 0;
    for (int i = 0; i < part->selections.count; i++) {
        const int32_t *got = part->selections.list[i].positions;
        Selection expected = selection_here(s, counterpart(s, whole, i));
        for (int64_t j = 0; j < count; j++) different += (expected.positions[j] < 0) != (got[j] < 0);
        *of += count;
        free_selection(&expected);
    }
    return different;
}

// Leaves one rank's selection where a step of one micro-step that replays finds it.
static void give_positions(const Setup *s, Training *t, const Outcome *whole) {
    int i = 0;
    for (int64_t layer = 0; layer < t->decoder->layers.config.layers; layer++) {
        if (t->layer_kinds[layer] != LAYER_LIGHTHOUSE) continue;
        Selection here = selection_here(s, counterpart(s, whole, i++));
        t->device->upload(t->device, layer_lighthouse(&t->decoder->layers, layer).positions, here.positions,
                          (size_t)position_count(&here.shape) * sizeof(int32_t));
        free_selection(&here);
    }
}

// --- the tests ------------------------------------------------------------------------------------------

static void check_outcome(const Setup *s, const Outcome *part, const Outcome *whole) {
    ParameterTable table = parameter_table_create(&odd_config, 1);
    const StorageType storage = s->device->ops->storage;
    check_close("loss", &part->loss, &whole->loss, 1,
                storage == STORAGE_BFLOAT16 ? 1e-3 : tolerance_of(s) / 10);
    check_parameters(&table, part->gradients, whole->gradients, tolerance_of(s));
    parameter_table_free(&table);
}

// The selection is replayed in bfloat16, where near-ties would be picked differently.
static void step_equals_one_ranks(void *argument) {
    const Setup *s = (const Setup *)argument;
    const bool replays = s->selection && s->device->ops->storage == STORAGE_BFLOAT16;
    const int64_t micro_steps = replays ? 1 : 2;
    double *weights = shared_weights();
    Sequences sequences = clear_sequences(s, weights, micro_steps);
    Outcome whole = step_of_one(s, weights, &sequences);
    Training *t = parallel_training(s, settings_of(s, false, micro_steps), false, weights);
    if (replays) give_positions(s, t, &whole);
    Outcome part = step_of_all(s, t, &sequences, replays);
    const int selections = s->selection && !replays ? (int)micro_steps * SELECTING_LAYERS : 0;
    check(part.selections.count == selections, "%d selections", part.selections.count);
    check_selections(s, &part, &whole);
    check_outcome(s, &part, &whole);
    if (replays) {
        Outcome free_running = step_of_all(s, t, &sequences, false);
        int64_t of = 0;
        double counts[2] = {(double)different_picks(s, &free_running, &whole, &of), 0};
        counts[1] = (double)of;
        communicator_sum(&s->communicator, counts, 2, "the picks");
        check(counts[0] <= 0.05 * counts[1], "%.0f of %.0f picks differ", counts[0], counts[1]);
        printf("     %.3f%% of %.0f entries are picked differently when nothing is replayed\n",
               100 * counts[0] / counts[1], counts[1]);
        free_outcome(&free_running);
    }
    training_close(t);
    free_outcome(&whole);
    free_outcome(&part);
    free(weights);
    free_sequences(&sequences);
}

// As the published implementation does it: outputs end with the piece they come from. The comparison must
// see it.
static void a_clipped_halo_is_seen(void *argument) {
    const Setup *s = (const Setup *)argument;
    Sequences sequences = random_sequences(s, 1);
    double *weights = shared_weights();
    Outcome whole = step_of_one(s, weights, &sequences);
    Training *t = parallel_training(s, settings_of(s, false, 1), false, weights);
    Layers *layers = &t->decoder->layers;
    layers->context = NULL; // no halo, and attention's plans have a context of their own
    layers->halo_received = layers->grad_halo_received = NO_BUFFER;
    accumulate_parallel(s, t, &sequences);
    Outcome part = outcome_of(s, t);
    const Parameter *p = parameter_find(&t->weights->table, PARAM_ATTENTION_OUT, 1);
    const int64_t first = p->offset - t->weights->table.buckets[p->bucket].offset +
                          t->weights->table.buckets[p->bucket].flat_offset;
    double difference = 0, norm = 0;
    for (int64_t i = first; i < first + p->count; i++) {
        difference += pow(part.gradients[i] - whole.gradients[i], 2);
        norm += pow(whole.gradients[i], 2);
    }
    const double beyond_any_tolerance = 0.04;
    check(sqrt(difference / norm) > beyond_any_tolerance, "clipping makes only %g of difference",
          sqrt(difference / norm));
    training_close(t);
    free_outcome(&whole);
    free_outcome(&part);
    free(weights);
    free_sequences(&sequences);
}

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
static void sharding_changes_no_bit(void *argument) {
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
static void a_nan_of_one_rank_reaches_all(void *argument) {
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

static void steps_repeat_and_recompute_to_the_bit(void *argument) {
    const Setup *s = (const Setup *)argument;
    Sequences sequences = random_sequences(s, 2);
    double *weights = shared_weights();
    void *first = NULL;
    static const RecomputeLevel levels[] = {RECOMPUTE_NONE, RECOMPUTE_NONE, RECOMPUTE_CHEAP, RECOMPUTE_BLOCK};
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        DecoderSettings settings = settings_of(s, false, 2);
        settings.recompute = levels[i];
        Training *t = parallel_training(s, settings, false, weights);
        accumulate_parallel(s, t, &sequences);
        optimizer_grad_norm(t->optimizer, NULL);
        size_t size;
        void *bytes = gradient_bytes(t, &size);
        check(!first || !memcmp(first, bytes, size), "recompute %s, run %zu: other gradients",
              recompute_names[levels[i]], i);
        if (first) free(bytes);
        if (!first) first = bytes;
        training_close(t);
    }
    free(first);
    free(weights);
    free_sequences(&sequences);
}

static void evaluation_equals_one_ranks(void *argument) {
    const Setup *s = (const Setup *)argument;
    double *weights = shared_weights();
    Sequences sequences = clear_sequences(s, weights, 1);
    Training *one = whole_training(s, 1, weights);
    Training *t = parallel_training(s, settings_of(s, false, 1), false, weights);
    const int64_t tokens = SEQ_LEN / context_group(s).size;
    for (int64_t row = 0; row < BATCH; row++) {
        slice(t->inputs + row * tokens, sequences.inputs + row * SEQ_LEN, context_group(s), tokens);
        slice(t->targets + row * tokens, sequences.targets + row * SEQ_LEN, context_group(s), tokens);
    }
    for (int selection = 0; selection < 2; selection++) {
        const StepAttention attention = training_attention(t, selection == 1);
        const double expected =
            decoder_evaluate(one->decoder, &attention, sequences.inputs, sequences.targets);
        double loss = decoder_evaluate(t->decoder, &attention, t->inputs, t->targets);
        communicator_sum(&s->communicator, &loss, 1, "the loss");
        loss /= data_group(s).size; // all groups took the same sequence
        // In bfloat16 the selection is not quite the same.
        const double in_bfloat16 = selection == 1 && s->selection ? 5e-3 : 1e-3;
        check_close(selection ? "as trained" : "dense", &loss, &expected, 1,
                    s->device->ops->storage == STORAGE_BFLOAT16 ? in_bfloat16 : tolerance_of(s));
    }
    training_close(t);
    training_close(one);
    free(weights);
    free_sequences(&sequences);
}

// --- ring attention alone -------------------------------------------------------------------------------

typedef struct {
    double *out, *logsumexp, *grad_qkv;
} AttentionResult;

// Attention of qkv and grad_out as given, on this rank's plan.
static AttentionResult attend(Device *device, const AttentionPlan *plan, const double *qkv,
                              const double *grad_out) {
    const StorageType storage = device->ops->storage, accumulator = accumulator_type(storage);
    const size_t rows = (size_t)(plan->batch * plan->seq_len), dim = (size_t)plan->head_dim;
    const size_t qkv_count = rows * (size_t)(plan->heads + 2 * plan->kv_heads) * dim,
                 out_count = rows * (size_t)plan->heads * dim;
    void *memory[6];
    const size_t bytes[] = {qkv_count * storage_size(storage),
                            out_count * storage_size(storage),
                            rows * (size_t)plan->heads * storage_size(accumulator),
                            out_count * storage_size(storage),
                            qkv_count * storage_size(storage),
                            plan->workspace_bytes + 1};
    for (size_t i = 0; i < COUNT_OF(memory); i++) {
        memory[i] = device->allocate(device, bytes[i]);
        void *poison = host_allocate(bytes[i], 1, "poison");
        memset(poison, 0xff, bytes[i]);
        device->upload(device, memory[i], poison, bytes[i]);
        free(poison);
    }
    upload(device, memory[0], storage, qkv, qkv_count);
    upload(device, memory[3], storage, grad_out, out_count);
    attention_forward(device, plan, memory[1], memory[2], memory[0], memory[5]);
    attention_backward(device, plan, memory[4], memory[3], memory[0], memory[1], memory[2], memory[5]);
    AttentionResult result = {download(device, memory[1], storage, out_count),
                              download(device, memory[2], accumulator, rows * (size_t)plan->heads),
                              download(device, memory[4], storage, qkv_count)};
    for (size_t i = 0; i < COUNT_OF(memory); i++) device->release(device, memory[i]);
    return result;
}

static void free_result(AttentionResult *result) {
    free(result->out);
    free(result->logsumexp);
    free(result->grad_qkv);
}

// This rank's tokens of rows [batch, SEQ, width] of whole sequences.
static double *rows_here(const Setup *s, const double *whole, int64_t batch, int64_t seq_len, int64_t width) {
    const Group context = context_group(s);
    const int64_t tokens = seq_len / context.size;
    double *here = host_allocate((size_t)(batch * tokens * width), sizeof(double), "rows");
    for (int64_t row = 0; row < batch; row++)
        for (int64_t i = 0; i < tokens; i++)
            memcpy(here + (row * tokens + i) * width,
                   whole + (row * seq_len + context_position(context, tokens, i)) * width,
                   (size_t)width * sizeof(double));
    return here;
}

static void ring_equals_whole(void *argument) {
    const Setup *s = (const Setup *)argument;
    Device *device = s->device;
    const int64_t batch = 2, piece = 37, seq_len = 2 * context_group(s).size * piece;
    const int heads = 6, kv_heads = 2, dim = 32;
    const int64_t width = (heads + 2 * kv_heads) * dim, out_width = heads * dim;
    double *qkv = host_allocate((size_t)(batch * seq_len * width), sizeof(double), "qkv");
    double *grad_out = host_allocate((size_t)(batch * seq_len * out_width), sizeof(double), "grad");
    random_fill(qkv, (size_t)(batch * seq_len * width));
    random_fill(grad_out, (size_t)(batch * seq_len * out_width));
    const AttentionPlan whole =
        attention_plan(device, batch, seq_len, heads, kv_heads, dim, true, SIZE_MAX, NULL);
    AttentionResult expected = attend(device, &whole, qkv, grad_out);
    double *qkv_here = rows_here(s, qkv, batch, seq_len, width);
    double *grad_here = rows_here(s, grad_out, batch, seq_len, out_width);
    double *out_here = rows_here(s, expected.out, batch, seq_len, out_width);
    double *grads_here = rows_here(s, expected.grad_qkv, batch, seq_len, width);
    const int64_t tokens = seq_len / context_group(s).size;
    AttentionPlan plan =
        attention_plan(device, batch, tokens, heads, kv_heads, dim, true, SIZE_MAX, s->collectives);
    for (int cut = 0; cut < 3; cut++) {
        plan.kv_heads_per_call = cut > 0 ? 1 : kv_heads;
        plan.piece_len = cut > 1 ? 16 : tokens; // cut, the last piece is shorter
        attention_plan_sizes(device, &plan);
        AttentionResult result = attend(device, &plan, qkv_here, grad_here);
        check_close("out", result.out, out_here, (size_t)(batch * tokens * out_width), tolerance_of(s));
        check_close("grad_qkv", result.grad_qkv, grads_here, (size_t)(batch * tokens * width),
                    tolerance_of(s));
        free_result(&result);
    }
    double *const arrays[] = {qkv, grad_out, qkv_here, grad_here, out_here, grads_here};
    for (size_t i = 0; i < COUNT_OF(arrays); i++) free(arrays[i]);
    free_result(&expected);
}

// --- all ------------------------------------------------------------------------------------------------

static void run(const char *what, void (*test)(void *), Setup *s) {
    char *name = format_string("%s, %d ranks, %d a sequence, %s: %s", storage_dtype(s->device->ops->storage),
                               s->communicator.size, context_group(s).size,
                               s->selection ? "selection" : "dense", what);
    test_run(name, test, s);
    free(name);
}

static void test_groups(Setup *s) {
    const bool context = context_group(s).size > 1;
    for (int selection = 0; selection < 2; selection++) {
        s->selection = selection == 1;
        run("a step equals one rank's", step_equals_one_ranks, s);
        run("repeats and recompute change no bit", steps_repeat_and_recompute_to_the_bit, s);
        if (context) run("evaluation equals one rank's", evaluation_equals_one_ranks, s);
    }
    if (context) run("a clipped halo is seen", a_clipped_halo_is_seen, s);
    if (context) run("ring attention equals whole", ring_equals_whole, s);
    run("a sharded optimizer changes no bit", sharding_changes_no_bit, s);
    run("a NaN of one rank reaches all", a_nan_of_one_rank_reaches_all, s);
}

void test_parallel(Device *device, const Communicator *communicator) {
    for (int cp = 1; cp <= communicator->size; cp *= 2) {
        if (communicator->size % cp != 0) continue;
        Setup setup = {.device = device, .communicator = *communicator};
        communicator_divide(&setup.communicator, cp);
        setup.collectives = collectives_create(device, &setup.communicator);
        test_groups(&setup);
        collectives_destroy(setup.collectives);
    }
}
