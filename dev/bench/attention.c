// Lighthouse attention beside dense attention, on a CUDA device: one layer's attention, 8 heads of 128, one
// sequence, bfloat16.
//
//   attention [--dense] [--deterministic] [SEQ_LEN,LEVELS,POOL,TOPK]...
//
// Without lengths: those of the published measurements. --dense: dense attention also beyond 131072 tokens,
// once (it takes seconds). --deterministic: cuDNN's deterministic backward.
#include "model/lighthouse.h"
#include "model/rotary.h"
#include "bench.h"

#include <string.h>

enum { HEADS = 8, HEAD_DIM = 128, TILE = 128 };
enum { WARMUP = 3, REPEATS = 21, IN_A_ROW = 4, PROFILED = 10 };
enum { DENSE_LEN = 131072, MOST_CASES = 32 };

// Milliseconds of a forward, and of a forward with its backward.
typedef struct {
    double forward, both;
} Times;

typedef struct {
    int64_t seq_len;
    LighthouseSettings settings;
    Times dense, reference, inner; // published times; 0: not published
} Case;

// Measured on an H200 with cuDNN 9.19 and PyTorch 2.11; "reference" is the published implementation in
// PyTorch, the better of eager and compiled.
static const Case published[] = {
    {32768, {3, 4, 2048, TILE}, {3.60, 14.2}, {2.07, 6.79}, {1.21, 4.71}},
    {98304, {3, 4, 1536, TILE}, {34.0, 126.5}, {2.74, 7.81}, {1.25, 4.72}},
    {131072, {3, 4, 2048, TILE}, {62.8, 231.5}, {4.02, 12.8}, {2.21, 8.39}},
    {262144, {3, 4, 2048, TILE}, {268.9, 947.6}, {7.15, 22.1}, {4.07, 14.5}},
    {524288, {3, 4, 2048, TILE}, {1160, 3820}, {14.9, 47.1}, {8.77, 32.1}},
    {524288, {4, 4, 2048, TILE}, {1160, 3820}, {12.8, 32.1}, {3.97, 14.6}},
};

typedef struct {
    Times dense, layer, inner;
    Times floor; // the least time for all but the inner attention: its bytes at the speed of a copy
    int64_t entries;
    ProfileRow *rows;
    int row_count;
} Result;

typedef struct {
    Device *device;
    LighthouseShape shape;
    AttentionPlan dense, inner;
    LighthouseLayer layer;
    void *qkv, *scores, *angles, *out, *logsumexp, *grad_out, *grad_qkv, *scratch, *workspace;
} Bench;

// --- the measured work ----------------------------------------------------------------------------------

static void rope(Bench *b, void *norms) {
    const LighthouseShape *s = &b->shape;
    b->device->ops->rope.rotate(b->qkv, norms, s->pyramid, b->angles, s->batch, s->seq_len,
                                s->heads + 2 * s->kv_heads, s->heads + s->kv_heads, s->head_dim, false,
                                b->device->stream);
}

static const LighthouseHalo no_halo = {}; // the sequence is not divided into pieces

static void layer_forward(Bench *b) {
    lighthouse_select(b->device, &b->shape, &b->layer, b->scores);
    lighthouse_gather(b->device, &b->shape, &b->layer, b->qkv);
    lighthouse_attend(b->device, &b->inner, &b->layer, b->workspace);
    lighthouse_scatter(b->device, &b->shape, &b->layer, &no_halo, b->out);
}

static void layer_both(Bench *b) {
    layer_forward(b);
    lighthouse_backward(b->device, &b->shape, &b->inner, &b->layer, &no_halo, b->grad_qkv, b->grad_out,
                        b->angles, b->scratch, b->workspace);
}

static void inner_forward(Bench *b) {
    lighthouse_attend(b->device, &b->inner, &b->layer, b->workspace);
}

// The inner attention alone, forward and backward, on the gradients that lighthouse_backward left in the
// scratch.
static void inner_both(Bench *b) {
    const int64_t sub_out = b->shape.entries * HEADS * HEAD_DIM;
    inner_forward(b);
    attention_backward(b->device, &b->inner, b->scratch, (uint16_t *)b->scratch + 3 * sub_out,
                       b->layer.gathered, b->layer.sub_out, b->layer.logsumexp, b->workspace);
}

static void dense_forward(Bench *b) {
    attention_forward(b->device, &b->dense, b->out, b->logsumexp, b->qkv, b->workspace);
}

static void dense_both(Bench *b) {
    dense_forward(b);
    attention_backward(b->device, &b->dense, b->grad_qkv, b->grad_out, b->qkv, b->out, b->logsumexp,
                       b->workspace);
}

typedef struct {
    Bench *bench;
    void (*work)(Bench *);
    int in_a_row;
} Action;

static void act(void *context) {
    const Action *action = (const Action *)context;
    for (int i = 0; i < action->in_a_row; i++) action->work(action->bench);
    action->bench->device->synchronize(action->bench->device);
}

// Median milliseconds of one call of `work`. Several are queued before the wait, so that launching and
// waiting hardly count.
static double milliseconds(Bench *b, void (*work)(Bench *)) {
    Action action = {b, work, IN_A_ROW};
    return 1e3 / IN_A_ROW * median_seconds(act, &action, WARMUP, REPEATS);
}

static double milliseconds_of_one(Bench *b, void (*work)(Bench *)) {
    Action action = {b, work, 1};
    return 1e3 * median_seconds(act, &action, 0, 1);
}

// --- a case ---------------------------------------------------------------------------------------------

typedef struct {
    const char *name;
    size_t bytes;
    void **where;
} Buffer;

static MemoryPlan *allocate_buffers(Bench *b, bool dense) {
    const LighthouseShape *s = &b->shape;
    const size_t row = 2 * HEADS * HEAD_DIM, tokens = (size_t)s->seq_len, entries = (size_t)s->entries;
    const size_t inner = b->inner.workspace_bytes, outer = dense ? b->dense.workspace_bytes : 0;
    const Buffer buffers[] = {
        {"qkv", tokens * 3 * row, &b->qkv},
        {"gradient of qkv", tokens * 3 * row, &b->grad_qkv},
        {"out", tokens * row, &b->out},
        {"gradient of out", tokens * row, &b->grad_out},
        {"log-sum-exp", dense ? tokens * HEADS * 4 : 0, &b->logsumexp},
        {"scores", (size_t)s->pyramid * 2 * HEADS * 4, &b->scores},
        {"RoPE angles", tokens * HEAD_DIM * 4, &b->angles},
        {"positions", (size_t)s->pyramid * HEADS * 4, (void **)&b->layer.positions},
        {"gathered queries, keys and values", entries * 3 * row, &b->layer.gathered},
        {"outputs of the subsequence", entries * row, &b->layer.sub_out},
        {"log-sum-exp of the subsequence", entries * HEADS * 4, &b->layer.logsumexp},
        {"scratch of the backward", (size_t)lighthouse_backward_scratch(s) * 2, &b->scratch},
        {"attention workspace", inner > outer ? inner : outer, &b->workspace},
    };
    MemoryPlan *memory = memory_plan_create(b->device);
    size_t offsets[COUNT_OF(buffers)];
    for (size_t i = 0; i < COUNT_OF(buffers); i++)
        offsets[i] = memory_plan_add(memory, buffers[i].bytes, "%s", buffers[i].name);
    memory_plan_allocate(memory);
    for (size_t i = 0; i < COUNT_OF(buffers); i++) *buffers[i].where = memory_at(memory, offsets[i]);
    return memory;
}

static void measure_dense(Bench *b, Result *result) {
    const bool once = b->shape.seq_len > DENSE_LEN;
    result->dense.forward = (once ? milliseconds_of_one : milliseconds)(b, dense_forward);
    result->dense.both = (once ? milliseconds_of_one : milliseconds)(b, dense_both);
}

static double lighthouse_bytes(const ProfileRow *rows, int count) {
    double bytes = 0;
    for (int i = 0; i < count; i++)
        if (!strncmp(rows[i].name, "lighthouse", strlen("lighthouse")))
            bytes += rows[i].bytes / (double)rows[i].calls;
    return bytes;
}

static void profile(Bench *b, const Ceilings *ceilings, Result *result) {
    int count;
    cuda_profile_start(b->device);
    layer_forward(b);
    ProfileRow *rows = cuda_profile_stop(b->device, &count);
    result->floor.forward = 1e3 * lighthouse_bytes(rows, count) / ceilings->bytes_per_second;
    free(rows);

    cuda_profile_start(b->device);
    for (int i = 0; i < PROFILED; i++) {
        rope(b, NULL);
        rope(b, b->scores);
        layer_both(b);
    }
    result->rows = cuda_profile_stop(b->device, &result->row_count);
    result->floor.both = 1e3 * lighthouse_bytes(result->rows, result->row_count) / ceilings->bytes_per_second;
}

static Result measure(Device *device, const Case *c, bool dense, bool deterministic,
                      const Ceilings *ceilings) {
    Bench b = {};
    Result result = {};
    const size_t bound = (size_t)4 << 30;
    b.device = device;
    b.shape = lighthouse_shape(&c->settings, 1, c->seq_len, HEADS, HEADS, HEAD_DIM);
    b.inner = lighthouse_attention_plan(device, &b.shape, deterministic, bound, NULL);
    if (dense)
        b.dense = attention_plan(device, 1, c->seq_len, HEADS, HEADS, HEAD_DIM, deterministic, bound, NULL);
    MemoryPlan *memory = allocate_buffers(&b, dense);
    const Group alone = {0, 1};
    upload_random(device, b.qkv, c->seq_len * 3 * HEADS * HEAD_DIM);
    upload_random(device, b.grad_out, c->seq_len * HEADS * HEAD_DIM);
    rotary_upload(device, b.angles, c->seq_len, HEAD_DIM, 10000, alone);
    rope(&b, b.scores);

    result.entries = b.shape.entries;
    result.layer.forward = milliseconds(&b, layer_forward);
    result.layer.both = milliseconds(&b, layer_both);
    result.inner.forward = milliseconds(&b, inner_forward);
    result.inner.both = milliseconds(&b, inner_both);
    profile(&b, ceilings, &result);
    if (dense) measure_dense(&b, &result);
    memory_plan_free(memory);
    return result;
}

// --- output ---------------------------------------------------------------------------------------------

static void print_times(Times times) {
    if (times.forward > 0)
        printf(" %.2f / %.2f |", times.forward, times.both);
    else
        printf(" - |");
}

// Prints the ratios longer / shorter.
static void print_ratio(Times longer, Times shorter) {
    if (longer.forward > 0)
        printf(" %.2f / %.2f |", longer.forward / shorter.forward, longer.both / shorter.both);
    else
        printf(" - |");
}

static void print_table(const Case *cases, const Result *results, int count) {
    printf("Milliseconds, forward / forward and backward, medians of %d (dense beyond %d tokens: one). The "
           "layer: "
           "selection, gather, inner attention and scatter, and their backward; it is given q, k and v after "
           "RoPE "
           "and the norms of level 0, which the RoPE operation writes (see \"rope with norms\" below). Rest "
           "floor: "
           "the bytes of all but the inner attention, by count, at the speed of a copy. Published: H200, "
           "cuDNN 9.19, PyTorch 2.11.\n\n",
           REPEATS, DENSE_LEN);
    printf("| N | L,p,K | S | dense | layer | inner | rest (layer - inner) | rest floor | dense/layer | "
           "layer/inner | published dense | published reference | published inner | reference/layer |\n"
           "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < count; i++) {
        const Case *c = &cases[i];
        const Result *r = &results[i];
        const Times rest = {r->layer.forward - r->inner.forward, r->layer.both - r->inner.both};
        printf("| %ld | %ld,%ld,%ld | %ld |", (long)c->seq_len, (long)c->settings.levels,
               (long)c->settings.pool, (long)c->settings.topk, (long)r->entries);
        print_times(r->dense);
        print_times(r->layer);
        print_times(r->inner);
        printf(" %.2f / %.2f |", rest.forward, rest.both);
        print_times(r->floor);
        print_ratio(r->dense, r->layer);
        print_ratio(r->layer, r->inner);
        print_times(c->dense);
        print_times(c->reference);
        print_times(c->inner);
        print_ratio(c->reference, r->layer);
        printf("\n");
    }
    printf("\n");
}

static Case parse_case(const char *text) {
    long seq_len, levels, pool, topk;
    char rest;
    Reason reason;
    if (sscanf(text, "%ld,%ld,%ld,%ld%c", &seq_len, &levels, &pool, &topk, &rest) != 4)
        fatal("%s: expected --dense, --deterministic or SEQ_LEN,LEVELS,POOL,TOPK", text);
    Case c;
    memset(&c, 0, sizeof(c));
    c.seq_len = seq_len;
    c.settings.levels = levels;
    c.settings.pool = pool;
    c.settings.topk = topk;
    c.settings.tile = TILE;
    if (seq_len < 1 || !lighthouse_valid(&c.settings, seq_len, &reason))
        fatal("%s: %s", text, seq_len < 1 ? "the length must be at least 1" : reason.text);
    for (size_t i = 0; i < COUNT_OF(published); i++)
        if (published[i].seq_len == seq_len &&
            !memcmp(&published[i].settings, &c.settings, sizeof(c.settings)))
            return published[i];
    return c;
}

int main(int argc, char **argv) {
    bool long_dense = false, deterministic = false;
    Case cases[MOST_CASES];
    Result results[MOST_CASES];
    int count = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--dense"))
            long_dense = true;
        else if (!strcmp(argv[i], "--deterministic"))
            deterministic = true;
        else if (count < MOST_CASES)
            cases[count++] = parse_case(argv[i]);
        else
            fatal("%s: at most %d lengths at a time", argv[i], MOST_CASES);
    }
    if (count == 0)
        for (; count < (int)COUNT_OF(published); count++) cases[count] = published[count];

    Device *device = cuda_device_create(0);
    const Ceilings ceilings = measure_ceilings(device);
    for (int i = 0; i < count; i++) {
        const bool again = i > 0 && cases[i].seq_len == cases[i - 1].seq_len; // dense attention is the same
        const bool dense = !again && (long_dense || cases[i].seq_len <= DENSE_LEN);
        results[i] = measure(device, &cases[i], dense, deterministic, &ceilings);
        if (again) results[i].dense = results[i - 1].dense;
    }
    print_table(cases, results, count);
    for (int i = 0; i < count; i++) {
        printf("%ld tokens, %ld entries:\n\n", (long)cases[i].seq_len, (long)results[i].entries);
        print_operations(results[i].rows, results[i].row_count, &ceilings);
        free(results[i].rows);
    }
    device->destroy(device);
    return 0;
}
