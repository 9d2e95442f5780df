// Does the model find what stands far back? Accuracy by length and depth of the published retrieval test (one
// digit hidden in random letters), or of an easier one (a string seen before, begun again); prompts.h has the
// prompts. Dense attention, one forward a prompt.
#include "common.h"
#include "prompts.h"

#include "base/json.h"
#include "base/names.h"
#include "base/random.h"

#include <getopt.h>
#include <math.h>
#include <stdlib.h>

enum { SHORTEST_BY_DEFAULT = 1024, MOST_BYTE_TOKENS = 512 };

static const char help[] =
    "passkey: accuracy of retrieval by length of the context and depth in it, with dense attention\n"
    "\n"
    "usage: passkey CHECKPOINT [options]\n"
    "\n"
    "  --task passkey|copy   passkey (default): sentences with one digit are hidden in random letters, and the\n"
    "                        prompt ends where the digit would follow; right if of the ten digits' tokens\n"
    "                        the right one has the largest logit. Chance is 10%: ten prompts that differ in\n"
    "                        the digit alone.\n"
    "                        copy: 32 of the random letters are begun again at the prompt's end; given 16 of\n"
    "                        them, how many of the next 16 have the largest logit of the vocabulary, each\n"
    "                        with those before it given. Chance among letters is 1.9%.\n"
    "  --lengths LIST        tokens of a prompt (default: 1024, 2048, … and the context trained at)\n"
    "  --depths LIST         where it is hidden, in percent (default 0,15,30,50,70,85,100)\n"
    "  --trials N            ten prompts a cell, so many times, each time in other letters (default 1)\n"
    "  --seed S              of the letters (default 1)\n"
    "  --prompts FILE        for a model whose tokens are not bytes: made by passkey_prompts.py\n"
    "  --device KIND         auto, cpu or cuda (default auto)\n"
    "  --json FILE           writes the result there too\n"
    "  --show                prints the prompts, a line of JSON each, and does not run the model\n"
    "  --help                this text\n";

typedef struct {
    const char *checkpoint, *device, *prompts, *json;
    Task task;
    IntegerList lengths, depths; // no lengths: by default
    int64_t trials;
    uint64_t seed;
    bool show;
} Arguments;

// --- command line ---------------------------------------------------------------------------------------

static Task parse_task(const char *text) {
    const int task = name_index(task_names, text);
    if (task < 0) fatal("--task %s: expected one of %s", text, names_joined(task_names));
    return (Task)task;
}

static Arguments parse_arguments(int argc, char **argv) {
    enum { TASK = 'h' + 1, LENGTHS, DEPTHS, TRIALS, SEED, PROMPTS, DEVICE, JSON, SHOW };
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'},
        {"task", required_argument, NULL, TASK},
        {"lengths", required_argument, NULL, LENGTHS},
        {"depths", required_argument, NULL, DEPTHS},
        {"trials", required_argument, NULL, TRIALS},
        {"seed", required_argument, NULL, SEED},
        {"prompts", required_argument, NULL, PROMPTS},
        {"device", required_argument, NULL, DEVICE},
        {"json", required_argument, NULL, JSON},
        {"show", no_argument, NULL, SHOW},
        {0},
    };
    Arguments a = {.device = "auto", .trials = 1, .seed = 1};
    const char *depths = "0,15,30,50,70,85,100";
    for (int option; (option = next_option(argc, argv, options, help)) != -1;) switch (option) {
            case TASK: a.task = parse_task(optarg); break;
            case LENGTHS: a.lengths = parse_integers("--lengths", optarg, 1, 1 << 30); break;
            case DEPTHS: depths = optarg; break;
            case TRIALS: a.trials = parse_integer("--trials", optarg, 1, 1000000); break;
            case SEED: a.seed = (uint64_t)parse_integer("--seed", optarg, 0, (int64_t)1 << 53); break;
            case PROMPTS: a.prompts = optarg; break;
            case DEVICE: a.device = optarg; break;
            case JSON: a.json = optarg; break;
            case SHOW: a.show = true; break;
        }
    a.depths = parse_integers("--depths", depths, 0, 100);
    a.checkpoint = other_arguments(argc, argv, 1, "CHECKPOINT")[0];
    return a;
}

// Powers of two up to the context trained at, and that.
static IntegerList default_lengths(int64_t trained) {
    IntegerList lengths = {0};
    for (int64_t length = SHORTEST_BY_DEFAULT; length < trained; length *= 2)
        lengths = integers_append(lengths, length);
    return integers_append(lengths, trained);
}

static PromptParts settle_parts(const Arguments *a, int64_t vocab_size) {
    const int64_t longest = a->lengths.values[a->lengths.count - 1];
    PromptParts parts;
    if (a->prompts) {
        parts = prompt_parts_read(a->prompts, vocab_size, longest);
    } else {
        if (vocab_size < 256)
            fatal("a vocabulary of %ld tokens is not of bytes: --prompts is needed", (long)vocab_size);
        if (vocab_size > MOST_BYTE_TOKENS)
            warning("without --prompts a token is a byte, and the vocabulary has %ld", (long)vocab_size);
        parts = prompt_parts_of_bytes(a->seed, longest);
    }
    const int64_t shortest = prompt_shortest(&parts, a->task);
    if (a->lengths.values[0] < shortest)
        fatal("--lengths: %s prompts of %ld tokens have no room for what is asked: at least %ld",
              task_names[a->task], (long)a->lengths.values[0], (long)shortest);
    return parts;
}

// --- a prompt -------------------------------------------------------------------------------------------

// Prompt `index` of a cell: the ten digits in turn, in the same filler.
static Question make_prompt(const Arguments *a, const PromptParts *parts, int32_t *tokens, int64_t length,
                            int64_t depth, int64_t index) {
    const int64_t filler = a->task == TASK_PASSKEY ? index / DIGITS : index;
    const uint64_t of_length = random_u64(random_key(a->seed, "prompts"), (uint64_t)length);
    const uint64_t key = random_u64(random_u64(of_length, (uint64_t)depth), (uint64_t)filler);
    return prompt_make(parts, a->task, tokens, length, depth, (int)(index % DIGITS), key);
}

static void show_prompts(const Arguments *a, const PromptParts *parts) {
    for (int l = 0; l < a->lengths.count; l++) {
        const int64_t length = a->lengths.values[l];
        int32_t *tokens = host_allocate((size_t)length, sizeof(int32_t), "a prompt");
        for (int d = 0; d < a->depths.count; d++)
            for (int64_t index = 0; index < DIGITS * a->trials; index++) {
                const Question question = make_prompt(a, parts, tokens, length, a->depths.values[d], index);
                printf("{\"length\": %ld, \"depth\": %ld, \"hidden\": %ld, \"asked\": %ld, \"expected\": [",
                       (long)length, (long)a->depths.values[d], (long)question.hidden, (long)question.asked);
                for (int64_t i = 0; i < question.count; i++)
                    printf("%s%d", i > 0 ? ", " : "", (int)question.expected[i]);
                printf("], \"tokens\": [");
                for (int64_t i = 0; i < length; i++) printf("%s%d", i > 0 ? ", " : "", (int)tokens[i]);
                printf("]}\n");
            }
        free(tokens);
    }
}

// --- what the model makes of it -------------------------------------------------------------------------

// The token of the largest logit, of `count` candidates or (NULL) of that many from 0 on.
static int32_t best_token(const double *logits, const int32_t *candidates, int64_t count) {
    int32_t best = candidates ? candidates[0] : 0;
    for (int64_t i = 0; i < count; i++) {
        const int32_t token = candidates ? candidates[i] : (int32_t)i;
        if (!isfinite(logits[token])) fatal("the model's logits are not finite");
        if (logits[token] > logits[best]) best = token;
    }
    return best;
}

// How many of the asked tokens the model predicts.
static int64_t count_right(Evaluation *model, const Arguments *a, const PromptParts *parts,
                           const int32_t *tokens, const Question *question) {
    const int64_t vocab_size = model->options.config.vocab_size;
    const bool of_digits = a->task == TASK_PASSKEY;
    double *logits = evaluation_logits(model, tokens, question->asked, question->count);
    int64_t right = 0;
    for (int64_t i = 0; i < question->count; i++)
        right +=
            question->expected[i] == best_token(logits + i * vocab_size, of_digits ? parts->answers : NULL,
                                                of_digits ? DIGITS : vocab_size);
    free(logits);
    return right;
}

// The share of right answers of a cell.
static double measure_cell(Evaluation *model, const Arguments *a, const PromptParts *parts, int32_t *tokens,
                           int64_t length, int64_t depth) {
    int64_t right = 0, asked = 0;
    for (int64_t index = 0; index < DIGITS * a->trials; index++) {
        const Question question = make_prompt(a, parts, tokens, length, depth, index);
        right += count_right(model, a, parts, tokens, &question);
        asked += question.count;
    }
    return (double)right / (double)asked;
}

// --- table ----------------------------------------------------------------------------------------------

static void print_row(const char *name, const double *cells, int count, double mean) {
    printf("%9s", name);
    for (int d = 0; d < count; d++) printf(" %6.1f%%", 100 * cells[d]);
    printf("  %6.1f%%\n", 100 * mean);
    fflush(stdout);
}

static double mean_of(const double *values, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += values[i];
    return sum / count;
}

static void print_head(const Arguments *a, const Evaluation *model) {
    printf("%s: %s, step %ld, dense attention on %s; %ld prompts a cell\n%9s", task_names[a->task],
           a->checkpoint, (long)model->checkpoint.progress.step, model->device->name,
           (long)(DIGITS * a->trials), "tokens");
    for (int d = 0; d < a->depths.count; d++) printf(" %6ld%%", (long)a->depths.values[d]);
    printf("  %7s\n", "mean");
    fflush(stdout);
}

// Prints the table row by row, and returns it.
static cJSON *measure(const Arguments *a, Evaluation *model, const PromptParts *parts) {
    const int columns = a->depths.count;
    double *cells = host_allocate((size_t)columns, sizeof(double), "accuracies");
    double *sums = host_allocate((size_t)columns, sizeof(double), "accuracies");
    cJSON *rows = cJSON_CreateArray();
    print_head(a, model);
    for (int l = 0; l < a->lengths.count; l++) {
        const int64_t length = a->lengths.values[l];
        int32_t *tokens = host_allocate((size_t)length, sizeof(int32_t), "a prompt");
        evaluation_set_length(model, length, false);
        for (int d = 0; d < columns; d++) {
            cells[d] = measure_cell(model, a, parts, tokens, length, a->depths.values[d]);
            sums[d] += cells[d] / a->lengths.count;
        }
        char name[32];
        snprintf(name, sizeof(name), "%ld", (long)length);
        print_row(name, cells, columns, mean_of(cells, columns));
        cJSON_AddItemToArray(rows, cJSON_CreateDoubleArray(cells, columns));
        free(tokens);
    }
    print_row("mean", sums, columns, mean_of(sums, columns));
    cJSON *result = cJSON_CreateObject();
    cJSON_AddItemToObject(result, "accuracy", rows);
    cJSON_AddNumberToObject(result, "mean", mean_of(sums, columns));
    free(cells);
    free(sums);
    return result;
}

static void write_result(const Arguments *a, const Evaluation *model, cJSON *result) {
    cJSON_AddStringToObject(result, "task", task_names[a->task]);
    cJSON_AddStringToObject(result, "checkpoint", a->checkpoint);
    cJSON_AddNumberToObject(result, "step", (double)model->checkpoint.progress.step);
    cJSON_AddStringToObject(result, "device", model->device->name);
    json_add_integers(result, "lengths", a->lengths);
    json_add_integers(result, "depths", a->depths);
    cJSON_AddNumberToObject(result, "prompts_per_cell", (double)(DIGITS * a->trials));
    cJSON_AddNumberToObject(result, "seed", (double)a->seed);
    json_write(a->json, result);
}

int main(int argc, char **argv) {
    Arguments a = parse_arguments(argc, argv);
    Evaluation model = evaluation_open(&argc, &argv, a.checkpoint, a.device);
    if (a.lengths.count == 0) a.lengths = default_lengths(model.options.seq_len);
    PromptParts parts = settle_parts(&a, model.options.config.vocab_size);
    if (a.show)
        show_prompts(&a, &parts);
    else
        write_result(&a, &model, measure(&a, &model, &parts));
    prompt_parts_free(&parts);
    evaluation_close(&model);
    free(a.lengths.values);
    free(a.depths.values);
    return 0;
}
