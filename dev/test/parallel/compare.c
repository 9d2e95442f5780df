#include "dev/test/parallel/compare.h"

#include "parallel/sequence_parts.h"

#include <math.h>
#include <string.h>

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

Sequences clear_sequences(const Setup *s, const double *weights, int64_t micro_steps) {
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

static double largest_difference(const double *a, const double *b, size_t count) {
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
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

void check_selections(const Setup *s, const Outcome *part, const Outcome *whole) {
    const LighthouseShape shape = lighthouse_part(whole_shape(), context_group(s).size);
    const size_t bytes = position_count(&shape) * sizeof(int32_t);
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

int64_t different_picks(const Setup *s, const Outcome *part, const Outcome *whole, int64_t *of) {
    const LighthouseShape shape = lighthouse_part(whole_shape(), context_group(s).size);
    const size_t count = position_count(&shape);
    int64_t different = 0;
    for (int i = 0; i < part->selections.count; i++) {
        const int32_t *got = part->selections.list[i].positions;
        Selection expected = selection_here(s, counterpart(s, whole, i));
        for (size_t j = 0; j < count; j++) different += (expected.positions[j] < 0) != (got[j] < 0);
        *of += (int64_t)count;
        free_selection(&expected);
    }
    return different;
}

void give_positions(const Setup *s, Training *t, const Outcome *whole) {
    int i = 0;
    for (int64_t layer = 0; layer < t->decoder->layers.config.layers; layer++) {
        if (t->layer_kinds[layer] != LAYER_LIGHTHOUSE) continue;
        Selection here = selection_here(s, counterpart(s, whole, i++));
        t->device->upload(t->device, layer_lighthouse(&t->decoder->layers, layer).positions, here.positions,
                          position_count(&here.shape) * sizeof(int32_t));
        free_selection(&here);
    }
}

void check_outcome(const Setup *s, const Outcome *part, const Outcome *whole) {
    ParameterTable table = parameter_table_create(&odd_config, 1);
    const StorageType storage = s->device->ops->storage;
    check_close("loss", &part->loss, &whole->loss, 1,
                storage == STORAGE_BFLOAT16 ? 1e-3 : tolerance_of(s) / 10);
    check_parameters(&table, part->gradients, whole->gradients, tolerance_of(s));
    parameter_table_free(&table);
}
