// Measures a training step on a CUDA device: tokens/s, and a table of the time of every operation with the
// ceilings measured in the same run. The last line is the result as JSON, for context.py.
//
//   step [options of train_lighthouse]     for example: step --seq-len 32768 --topk 2048 --recompute none
//   step brief [options]                   without the table
//   mpirun -np 2 step --cp 2 …             a step of several GPUs together, with the sum of gradients; also
//                                          prints how much of their communication is hidden by computation
//
// One sequence a step unless --batch-size says otherwise; no data is needed. Where some steps are dense (--dense-every,
// --dense-first) both types of step are measured, and the result is their mean over the --steps of a run; the table
// is of a usual step. Where the dense layers rotate, the first usual step stands for all.
#include "run/options_check.h"
#include "training/step.h"
#include "bench.h"

#include <string.h>

enum { WARMUP = 2, REPEATS = 5 };
static const double long_step = 2; // in seconds: longer steps are measured once, after one to warm up

// --- a step ---------------------------------------------------------------------------------------------

typedef struct {
    Training training;
    int32_t *inputs, *targets;
    int64_t step; // whose attention is run
} Bench;

static int64_t batch_rows(const Bench *b) {
    return b->training.decoder->layers.batch * b->training.decoder->layers.seq_len;
}

static void read_batch(void *context, int64_t, int32_t *inputs, int32_t *targets) {
    const Bench *b = (const Bench *)context;
    const size_t bytes = (size_t)batch_rows(b) * sizeof(int32_t);
    memcpy(inputs, b->inputs, bytes);
    memcpy(targets, b->targets, bytes);
}

static void forward_backward(void *context) {
    Bench *b = (Bench *)context;
    Training *t = &b->training;
    const BatchSource source = {read_batch, b};
    const StepAttention attention = training_step_attention(t, b->step, false);
    const GradientsReady reduction = optimizer_reduction(t->optimizer);
    step_accumulate(t, &attention, &source, &reduction);
    collectives_finish(t->collectives);
    t->device->synchronize(t->device);
}

static void optimizer_step(void *context) {
    Bench *b = (Bench *)context;
    Training *t = &b->training;
    optimizer_update(t->optimizer, 1, 1e-5, optimizer_grad_norm(t->optimizer, NULL));
    t->device->synchronize(t->device);
}

static void profile_step(Bench *b, const Ceilings *ceilings) {
    cuda_profile_start(b->training.device);
    forward_backward(b);
    optimizer_step(b);
    int count;
    ProfileRow *rows = cuda_profile_stop(b->training.device, &count);
    printf("\n");
    print_operations(rows, count, ceilings);
    free(rows);
}

// How long the steps of a run take, of each type that there is.
typedef struct {
    int64_t count[STEP_TYPES];
    double seconds[STEP_TYPES]; // of forward and backward of one
    double mean;                // over all
} StepTimes;

static double measure_step(Bench *b, int64_t step) {
    b->step = step;
    const double seconds = median_seconds(forward_backward, b, 1, 1);
    if (!communicator_all(b->training.collectives->communicator, seconds < long_step, "the benchmark"))
        return seconds;
    return median_seconds(forward_backward, b, WARMUP, REPEATS);
}

// Leaves the bench at a usual step, if there is one.
static StepTimes measure_steps(Bench *b, int64_t steps) {
    const AttentionSchedule *schedule = &b->training.schedule;
    StepTimes times = {0};
    times.count[DENSE_STEP] = attention_schedule_dense_steps(schedule, 0, steps);
    times.count[USUAL_STEP] = steps - times.count[DENSE_STEP];
    for (int type = STEP_TYPES - 1; type >= 0; type--) {
        if (times.count[type] == 0) continue;
        int64_t step = 0;
        while (attention_schedule_type(schedule, step) != (StepType)type) step++;
        times.seconds[type] = measure_step(b, step);
        times.mean += times.seconds[type] * (double)times.count[type] / (double)steps;
    }
    return times;
}

// --- communication between GPUs -------------------------------------------------------------------------

typedef enum { REDUCE_SCATTER, ALL_GATHER, EXCHANGE } CallKind;

// The arguments of one collective operation of a step, so that it can be repeated on its own.
typedef struct {
    CallKind kind;
    GroupKind group;
    void *buffer;
    int64_t size; // elements (REDUCE_SCATTER) or bytes (ALL_GATHER) of one rank's part
    Message sends[2], receives[2];
    int send_count, receive_count;
} Call;

static struct {
    Call calls[4096];
    int count;
    Collectives real;
} steps_calls;

static Call *add_call(CallKind kind, GroupKind group) {
    if (steps_calls.count == (int)COUNT_OF(steps_calls.calls)) fatal("a step has more collective operations");
    Call *call = &steps_calls.calls[steps_calls.count++];
    memset(call, 0, sizeof(*call));
    call->kind = kind;
    call->group = group;
    return call;
}

static void note_reduce_scatter(Collectives *self, GroupKind group, void *buffer, int64_t count,
                                const char *what) {
    Call *call = add_call(REDUCE_SCATTER, group);
    call->buffer = buffer;
    call->size = count;
    steps_calls.real.reduce_scatter(self, group, buffer, count, what);
}

static void note_all_gather(Collectives *self, GroupKind group, void *buffer, size_t bytes,
                            const char *what) {
    Call *call = add_call(ALL_GATHER, group);
    call->buffer = buffer;
    call->size = (int64_t)bytes;
    steps_calls.real.all_gather(self, group, buffer, bytes, what);
}

static void note_exchange(Collectives *self, GroupKind group, const Message *sends, int send_count,
                          const Message *receives, int receive_count, const char *what) {
    Call *call = add_call(EXCHANGE, group);
    for (int i = 0; i < send_count; i++) call->sends[i] = sends[i];
    for (int i = 0; i < receive_count; i++) call->receives[i] = receives[i];
    call->send_count = send_count;
    call->receive_count = receive_count;
    steps_calls.real.exchange(self, group, sends, send_count, receives, receive_count, what);
}

static void do_calls(void *context) {
    Collectives *collectives = ((Bench *)context)->training.collectives;
    for (int i = 0; i < steps_calls.count; i++) {
        const Call *c = &steps_calls.calls[i];
        if (c->kind == REDUCE_SCATTER)
            collectives_reduce_scatter(collectives, c->group, c->buffer, c->size, "the benchmark");
        else if (c->kind == ALL_GATHER)
            collectives_all_gather(collectives, c->group, c->buffer, (size_t)c->size, "the benchmark");
        else
            collectives_exchange(collectives, c->group, c->sends, c->send_count, c->receives,
                                 c->receive_count, "the benchmark");
    }
    collectives_finish(collectives);
    collectives->device->synchronize(collectives->device);
}

// Replaces the exchange: receives a copy of what is sent, so that the step computes with realistic numbers.
static void copy_exchange(Collectives *self, GroupKind group, const Message *sends, int send_count,
                          const Message *receives, int receive_count, const char *what) {
    (void)group, (void)what;
    const int64_t columns = 64; // 128 bytes
    for (int i = 0; i < send_count && i < receive_count; i++)
        self->device->ops->convert.copy_rows(receives[i].memory, columns, sends[i].memory, columns,
                                             (int64_t)sends[i].bytes / (2 * columns), columns,
                                             self->device->stream);
}
static void no_reduce_scatter(Collectives *, GroupKind, void *, int64_t, const char *) {}
static void no_all_gather(Collectives *, GroupKind, void *, size_t, const char *) {}
static void no_finish(Collectives *) {}

// Measures the step's collective operations alone, and the step without them. The difference between the
// whole step, `step` seconds, and the step without them is the communication that is not hidden, including
// how much communication and computation slow each other down.
static void print_overlap(Bench *b, double step) {
    Collectives *collectives = b->training.collectives;
    steps_calls.real = *collectives;
    collectives->reduce_scatter = note_reduce_scatter;
    collectives->all_gather = note_all_gather;
    collectives->exchange = note_exchange;
    forward_backward(b);
    *collectives = steps_calls.real;
    const double alone = median_seconds(do_calls, b, 1, REPEATS);
    collectives->reduce_scatter = no_reduce_scatter;
    collectives->all_gather = no_all_gather;
    collectives->exchange = copy_exchange;
    collectives->finish = no_finish;
    const double without = median_seconds(forward_backward, b, 1, step < long_step ? REPEATS : 1);
    const double copies = median_seconds(do_calls, b, 1, REPEATS);
    *collectives = steps_calls.real;
    printf(
        "%d collective operations: %.1f ms on their own; the step without them %.1f ms, so %.1f ms are not "
        "hidden\n",
        steps_calls.count, 1e3 * alone, 1e3 * (without - copies), 1e3 * (step - (without - copies)));
}

// --- output ---------------------------------------------------------------------------------------------

// Fills the batch with random bytes as tokens, like text prepared by dev/data.
static void make_batch(Bench *b) {
    const int64_t rows = batch_rows(b);
    b->inputs = host_allocate((size_t)rows, sizeof(int32_t), "tokens");
    b->targets = host_allocate((size_t)rows, sizeof(int32_t), "tokens");
    for (int64_t i = 0; i < rows; i++) b->inputs[i] = (int32_t)(random_u64(3, (uint64_t)i) % 256);
    for (int64_t i = 0; i < rows; i++) b->targets[i] = b->inputs[(i + 1) % rows];
}

static double gib_in_use(Device *device) {
    size_t free_bytes, total_bytes;
    device->memory(device, &free_bytes, &total_bytes);
    return (double)(total_bytes - free_bytes) / 0x1p30;
}

static void print_recompute(const Training *t, const StepTimes *times) {
    const RecomputeLevel *levels = t->decoder->layers.recompute;
    printf("recompute %s", recompute_names[levels[USUAL_STEP]]);
    if (times->count[DENSE_STEP] > 0) printf(" (%s in dense steps)", recompute_names[levels[DENSE_STEP]]);
}

static void print_step(const Training *t, const Options *o, const StepTimes *times, double update,
                       double used) {
    const FlopsPerToken flops = training_mean_flops(t, o->steps);
    const double step = times->mean;
    const int64_t layers = t->schedule.layers;
    const int processes = t->collectives->communicator->size;
    const double tokens = (double)(o->global_batch * o->seq_len),
                 work = (flops.linear + flops.attention) * tokens;
    if (processes > 1) printf("%d GPUs, %ld for each sequence: ", processes, (long)o->cp);
    printf("%s, %ld x %ld tokens, %.4g Lighthouse layers on %ld entries, ", model_preset_names[o->model],
           (long)o->global_batch, (long)o->seq_len,
           (double)layers - attention_schedule_dense_layers(&t->schedule),
           (long)(t->decoder->layers.lighthouse.entries * o->cp));
    print_recompute(t, times);
    printf(", deterministic %s\n", o->deterministic ? "on" : "off");
    if (times->count[DENSE_STEP] > 0)
        printf(
            "in a run of %ld steps %ld usual ones, of %.1f ms, and %ld dense ones, of %.1f ms; on average:\n",
            (long)o->steps, (long)times->count[USUAL_STEP], 1e3 * times->seconds[USUAL_STEP],
            (long)times->count[DENSE_STEP], 1e3 * times->seconds[DENSE_STEP]);
    printf("%.1f ms forward and backward, %.2f ms optimizer step: "
           "%.1fk tokens/s, %.1fk with an optimizer step every time\n",
           1e3 * step, 1e3 * update, 1e-3 * tokens / step, 1e-3 * tokens / (step + update));
    printf("%.0f TFLOP/s by count", 1e-12 * work / step);
    if (t->device->peak_flops > 0)
        printf(", MFU %.1f%%", 100 * work / step / (t->device->peak_flops * processes));
    printf("; %.2f GiB planned, %.2f GiB in use on the device\n",
           (double)memory_plan_bytes(t->memory) / 0x1p30, used);
}

static void print_json(const Training *t, const Options *o, const StepTimes *times, double update,
                       double used) {
    const double step = times->mean;
    const int64_t tokens = o->global_batch * o->seq_len;
    printf("{\"gpu\": \"%s\", \"model\": \"%s\", \"tokens\": %ld, \"recompute\": \"%s\"", t->device->name,
           model_preset_names[o->model], (long)tokens,
           recompute_names[t->decoder->layers.recompute[USUAL_STEP]]);
    printf(", \"ms\": %.3f, \"optimizer_ms\": %.3f, \"tokens_per_second\": %.1f", 1e3 * step, 1e3 * update,
           (double)tokens / step);
    if (times->count[DENSE_STEP] > 0)
        printf(", \"usual_ms\": %.3f, \"dense_ms\": %.3f, \"dense_recompute\": \"%s\"",
               1e3 * times->seconds[USUAL_STEP], 1e3 * times->seconds[DENSE_STEP],
               recompute_names[t->decoder->layers.recompute[DENSE_STEP]]);
    printf(", \"planned_gib\": %.3f, \"memory_gib\": %.3f}\n", (double)memory_plan_bytes(t->memory) / 0x1p30,
           used);
}

int main(int argc, char **argv) {
    const bool brief = argc > 1 && !strcmp(argv[1], "brief");
    if (brief) argv[1] = argv[0];
    argc -= brief;
    argv += brief;
    Options options = options_parse(argc, argv, NULL);
    options.plan = true; // so that no data is required
    Communicator communicator = communicator_create(&argc, &argv);
    options.global_batch = options.batch_size * max_i64(communicator.size / options.cp, 1);
    options.steps = max_i64(options.steps, 1);
    options_check(&options, communicator.size);
    communicator_divide(&communicator, (int)options.cp);
    options.device = DEVICE_CUDA;
    Device *device = training_open_device(&options, &communicator);
    Collectives *collectives = collectives_create(device, &communicator);
    const Ceilings ceilings = measure_ceilings(device);
    Bench b = {.training = training_plan(collectives, &options)};
    training_allocate(&b.training);
    optimizer_initialize(b.training.optimizer, 1);
    make_batch(&b);
    const StepTimes times = measure_steps(&b, options.steps);
    const double update = median_seconds(optimizer_step, &b, WARMUP, REPEATS);
    const double used = gib_in_use(device);
    print_step(&b.training, &options, &times, update, used);
    if (communicator.size > 1)
        print_overlap(&b, times.seconds[times.count[USUAL_STEP] > 0 ? USUAL_STEP : DENSE_STEP]);
    if (!brief) profile_step(&b, &ceilings);
    print_json(&b.training, &options, &times, update, used);
    training_free(&b.training);
    free(b.inputs);
    free(b.targets);
    collectives_destroy(collectives);
    device->destroy(device);
    communicator_destroy(&communicator);
    return 0;
}
