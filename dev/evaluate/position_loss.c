// Does the model use what is far away? Its mean loss by position in the context, with dense attention and, if
// it was trained with selection, as trained.
#include "common.h"
#include "run/dataset.h"

#include "base/json.h"

#include <getopt.h>
#include <stdlib.h>

enum { FIRST_BUCKET_END = 64, USUAL_SAMPLES = 16 };

static const char help[] =
    "position_loss: mean loss by position in the context\n"
    "\n"
    "usage: position_loss CHECKPOINT SHARDS [options]      SHARDS: a glob\n"
    "\n"
    "Dense, and as trained if that was with selection. The mean over the buckets, weighted by their tokens, is the\n"
    "validation loss of train_lighthouse over the same samples, which are the first of the shards.\n"
    "\n"
    "  --seq-len N        tokens of a sample (default: the context trained at)\n"
    "  --samples N        how many (default: 16, or all there are)\n"
    "  --buckets LIST     the positions, rising, at which a bucket ends and the next begins (default: 64, 128,\n"
    "                     256, … below N)\n"
    "  --device KIND      auto, cpu or cuda (default auto)\n"
    "  --json FILE        writes the result there too\n"
    "  --help             this text\n";

typedef struct {
    const char *checkpoint, *shards, *device, *json;
    int64_t seq_len, samples; // 0: by default
    IntegerList ends;         // of the buckets, seq_len last; none: by default
} Arguments;

// --- command line ---------------------------------------------------------------------------------------

static Arguments parse_arguments(int argc, char **argv) {
    enum { SEQ_LEN = 'h' + 1, SAMPLES, BUCKETS, DEVICE, JSON };
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'},
        {"seq-len", required_argument, NULL, SEQ_LEN},
        {"samples", required_argument, NULL, SAMPLES},
        {"buckets", required_argument, NULL, BUCKETS},
        {"device", required_argument, NULL, DEVICE},
        {"json", required_argument, NULL, JSON},
        {0},
    };
    Arguments a = {.device = "auto"};
    for (int option; (option = next_option(argc, argv, options, help)) != -1;) switch (option) {
            case SEQ_LEN: a.seq_len = parse_integer("--seq-len", optarg, 1, 1 << 30); break;
            case SAMPLES: a.samples = parse_integer("--samples", optarg, 1, INT64_MAX); break;
            case BUCKETS: a.ends = parse_integers("--buckets", optarg, 1, 1 << 30); break;
            case DEVICE: a.device = optarg; break;
            case JSON: a.json = optarg; break;
        }
    char **others = other_arguments(argc, argv, 2, "CHECKPOINT and SHARDS");
    a.checkpoint = others[0];
    a.shards = others[1];
    return a;
}

static void settle_buckets(Arguments *a) {
    if (a->ends.count == 0)
        for (int64_t end = FIRST_BUCKET_END; end < a->seq_len; end *= 2)
            a->ends = integers_append(a->ends, end);
    else if (a->ends.values[a->ends.count - 1] >= a->seq_len)
        fatal("--buckets: %ld is not below the %ld tokens of a sample",
              (long)a->ends.values[a->ends.count - 1], (long)a->seq_len);
    a->ends = integers_append(a->ends, a->seq_len);
}

static void settle_samples(Arguments *a, const Dataset *data) {
    if (a->samples > data->samples)
        fatal("--samples %ld: %s has %ld of %ld tokens", (long)a->samples, a->shards, (long)data->samples,
              (long)a->seq_len);
    if (a->samples == 0) a->samples = min_i64(USUAL_SAMPLES, data->samples);
}

// --- losses ---------------------------------------------------------------------------------------------

// Losses summed over the samples, float64[seq_len]; for the caller to free.
static double *sum_losses(Evaluation *model, const Arguments *a, const Dataset *data,
                          StepAttention attention) {
    const size_t length = (size_t)a->seq_len;
    int32_t *inputs = host_allocate(length, sizeof(int32_t), "a sample");
    int32_t *targets = host_allocate(length, sizeof(int32_t), "a sample");
    double *losses = host_allocate(length, sizeof(double), "losses");
    double *sums = host_allocate(length, sizeof(double), "losses");
    for (int64_t sample = 0; sample < a->samples; sample++) {
        dataset_read(data, sample, 0, a->seq_len, inputs, targets);
        decoder_row_losses(model->decoder, &attention, losses, inputs, targets);
        for (size_t i = 0; i < length; i++) sums[i] += losses[i];
    }
    free(inputs);
    free(targets);
    free(losses);
    return sums;
}

// Of positions [first, end), from the sums over the samples.
static double mean_loss(const Arguments *a, const double *sums, int64_t first, int64_t end) {
    double sum = 0;
    for (int64_t i = first; i < end; i++) sum += sums[i];
    return sum / ((double)(end - first) * (double)a->samples);
}

// --- table ----------------------------------------------------------------------------------------------

// Adds the losses of positions [first, end) to `json`, and prints them. `trained` may be NULL.
static void report_losses(const Arguments *a, cJSON *json, const char *name, const double *dense,
                          const double *trained, int64_t first, int64_t end) {
    const double dense_loss = mean_loss(a, dense, first, end);
    printf("%17s %12ld %10.4f", name, (long)((end - first) * a->samples), dense_loss);
    cJSON_AddNumberToObject(json, "loss_dense", dense_loss);
    if (trained) {
        const double trained_loss = mean_loss(a, trained, first, end);
        printf(" %10.4f", trained_loss);
        cJSON_AddNumberToObject(json, "loss_as_trained", trained_loss);
    }
    printf("\n");
}

static void report(const Arguments *a, const Evaluation *model, const double *dense, const double *trained) {
    printf("position_loss: %s, step %ld, %s: %ld samples of %ld tokens, on %s\n", a->checkpoint,
           (long)model->checkpoint.progress.step, a->shards, (long)a->samples, (long)a->seq_len,
           model->device->name);
    printf("%17s %12s %10s %10s\n", "positions", "tokens", "dense", trained ? "as trained" : "");
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "checkpoint", a->checkpoint);
    cJSON_AddNumberToObject(json, "step", (double)model->checkpoint.progress.step);
    cJSON_AddStringToObject(json, "shards", a->shards);
    cJSON_AddStringToObject(json, "device", model->device->name);
    cJSON_AddNumberToObject(json, "seq_len", (double)a->seq_len);
    cJSON_AddNumberToObject(json, "samples", (double)a->samples);
    cJSON *buckets = cJSON_AddArrayToObject(json, "buckets");
    int64_t first = 0;
    for (int i = 0; i < a->ends.count; i++) {
        const int64_t end = a->ends.values[i];
        char name[64];
        snprintf(name, sizeof(name), "%ld to %ld", (long)first, (long)(end - 1));
        cJSON *bucket = cJSON_CreateObject();
        cJSON_AddNumberToObject(bucket, "first", (double)first);
        cJSON_AddNumberToObject(bucket, "end", (double)end);
        report_losses(a, bucket, name, dense, trained, first, end);
        cJSON_AddItemToArray(buckets, bucket);
        first = end;
    }
    report_losses(a, json, "all", dense, trained, 0, a->seq_len);
    json_write(a->json, json);
}

int main(int argc, char **argv) {
    Arguments a = parse_arguments(argc, argv);
    Evaluation model = evaluation_open(&argc, &argv, a.checkpoint, a.device);
    const bool selects = model.options.selection;
    if (a.seq_len == 0) a.seq_len = model.options.seq_len;
    settle_buckets(&a);
    Dataset data = dataset_open("SHARDS", a.shards, a.seq_len, model.options.config.vocab_size, true);
    settle_samples(&a, &data);
    evaluation_set_length(&model, a.seq_len, selects);
    double *dense = sum_losses(&model, &a, &data, (StepAttention){.layers = NULL});
    double *trained =
        selects ? sum_losses(&model, &a, &data, (StepAttention){.layers = model.layer_kinds}) : NULL;
    report(&a, &model, dense, trained);
    free(dense);
    free(trained);
    free(a.ends.values);
    dataset_close(&data);
    evaluation_close(&model);
    return 0;
}
