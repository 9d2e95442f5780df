// Storage types, random numbers, model shapes and the parameter table.
#include "test.h"

#include "model/parameters.h"
#include "base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// --- storage --------------------------------------------------------------------------------------------

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void test_bfloat16_rounding(void *unused) {
    (void)unused;
    static const struct {
        uint32_t in;
        uint16_t out;
    } cases[] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80}, {0xbf800000, 0xbf80},
        {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, // a tie goes to even
        {0x3f817fff, 0x3f81}, {0x3f818000, 0x3f82}, {0x3f818001, 0x3f82}, {0xbf818000, 0xbf82},
        {0x3fffffff, 0x4000},                                             // into the next power of two
        {0x7f7f7fff, 0x7f7f}, {0x7f7f8000, 0x7f80}, {0x7f7fffff, 0x7f80}, // the largest, and beyond it
        {0xff7fffff, 0xff80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, // infinities stay
        {0x00000001, 0x0000}, {0x00008000, 0x0000}, {0x00008001, 0x0001}, // subnormal
        {0x00018000, 0x0002}, {0x007fffff, 0x0080}, {0x80008001, 0x8001},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const uint16_t got = bfloat16_from_float(float_of_bits(cases[i].in));
        check(got == cases[i].out, "%08x rounds to %04x, not %04x", cases[i].in, got, cases[i].out);
    }
    static const uint32_t nans[] = {0x7fc00000, 0x7f800001, 0xff800001, 0x7fffffff, 0xffffffff, 0x7f80ffff};
    for (size_t i = 0; i < COUNT_OF(nans); i++)
        check(isnan(bfloat16_to_float(bfloat16_from_float(float_of_bits(nans[i])))), "NaN %08x is lost",
              nans[i]);
    for (uint32_t bits = 0; bits <= UINT16_MAX; bits++) {
        const float value = bfloat16_to_float((uint16_t)bits);
        check(isnan(value) || bfloat16_from_float(value) == bits, "%04x does not come back", bits);
    }
}

// No other bfloat16 is nearer to the value.
static void test_bfloat16_nearest(void *unused) {
    (void)unused;
    for (int i = 0; i < 20000; i++) {
        const uint32_t bits = (uint32_t)random_below(0x7f000000) | (uint32_t)random_below(2) << 31;
        const double value = float_of_bits(bits);
        const uint16_t rounded = bfloat16_from_float((float)value);
        const double error = fabs(bfloat16_to_float(rounded) - value);
        for (int step = -1; step <= 1; step += 2) {
            const uint16_t other = (uint16_t)(rounded + step);
            if ((other ^ rounded) & 0x8000) continue;
            check(error <= fabs(bfloat16_to_float(other) - value), "%08x rounds to %04x, but %04x is nearer",
                  bits, rounded, other);
        }
    }
}

static void test_storage(void *unused) {
    (void)unused;
    static const struct {
        StorageType type, accumulator;
        size_t size;
        double tolerance;
    } types[] = {{STORAGE_FLOAT64, STORAGE_FLOAT64, 8, 0},
                 {STORAGE_FLOAT32, STORAGE_FLOAT32, 4, 0x1p-24},
                 {STORAGE_BFLOAT16, STORAGE_FLOAT32, 2, 0x1p-8}};
    double in[1001], out[1001];
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        const StorageType type = types[i].type;
        check(storage_size(type) == types[i].size, "%s has %zu bytes", storage_name(type),
              storage_size(type));
        check(accumulator_type(type) == types[i].accumulator, "the accumulator of %s", storage_name(type));
        void *stored = host_allocate(COUNT_OF(in), storage_size(type), "a test");
        random_fill(in, COUNT_OF(in));
        storage_from_double(stored, type, in, COUNT_OF(in));
        storage_to_double(out, stored, type, COUNT_OF(in));
        check_close(storage_name(type), out, in, COUNT_OF(in), types[i].tolerance);
        storage_from_double(stored, type, out, COUNT_OF(in)); // representable values are converted exactly
        storage_to_double(in, stored, type, COUNT_OF(in));
        check(!memcmp(in, out, sizeof(in)), "%s does not come back", storage_name(type));
        free(stored);
    }
}

static void test_text(void *unused) {
    (void)unused;
    static const struct {
        double bytes;
        const char *text;
    } cases[] = {{0, "0 B"},
                 {1023, "1023 B"},
                 {1024, "1.00 KiB"},
                 {1536, "1.50 KiB"},
                 {1 << 20, "1.00 MiB"},
                 {5.25 * (1 << 30), "5.25 GiB"},
                 {0x1p50, "1024.00 TiB"}};
    char text[32];
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        check(!strcmp(format_bytes(text, cases[i].bytes), cases[i].text), "%g bytes are \"%s\", not \"%s\"",
              cases[i].bytes, text, cases[i].text);
    char *formatted = format_string("%0*d|%s", 300, 7, "end");
    check(strlen(formatted) == 304 && !strcmp(formatted + 299, "7|end"), "format_string: %s", formatted);
    free(formatted);
}

// --- random numbers -------------------------------------------------------------------------------------

static void check_bijection(int64_t count, uint64_t key) {
    bool *seen = host_allocate((size_t)count, sizeof(bool), "a test");
    int64_t moved = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t place = random_permute(i, count, key);
        const bool inside = place >= 0 && place < count;
        check(inside && !seen[place], "%ld of %ld goes to %ld, which is %s", (long)i, (long)count,
              (long)place, inside ? "taken" : "outside");
        if (inside) seen[place] = true;
        moved += place != i;
    }
    // A random permutation leaves one element in place on average, and more than 10 once in ten million.
    check(count - moved <= 10, "%ld of %ld stay in place", (long)(count - moved), (long)count);
    free(seen);
}

static void test_permutation(void *unused) {
    (void)unused;
    for (int64_t count = 1; count <= 70; count++) check_bijection(count, random_below(UINT64_MAX));
    static const int64_t counts[] = {127,  128,  129,  255,  256,   257,   1000,
                                     1023, 1024, 1025, 4097, 65535, 65537, 100003};
    for (size_t i = 0; i < COUNT_OF(counts); i++)
        for (int repeat = 0; repeat < 3; repeat++) check_bijection(counts[i], random_below(UINT64_MAX));
}

static void test_permutation_keys(void *unused) {
    (void)unused;
    const int64_t count = 9973;
    const uint64_t first = random_below(UINT64_MAX), second = first + 1;
    int64_t same = 0, ascending = 0;
    for (int64_t i = 0; i < count; i++) {
        same += random_permute(i, count, first) == random_permute(i, count, second);
        ascending += i > 0 && random_permute(i, count, first) > random_permute(i - 1, count, first);
    }
    check(same <= 12, "two keys agree on %ld of %ld places", (long)same, (long)count);
    check(fabs((double)ascending / (double)count - 0.5) < 0.03, "%ld of %ld steps ascend", (long)ascending,
          (long)count);
    for (int i = 0; i < 1000; i++) {
        const int64_t large = (int64_t)(1 + random_below((uint64_t)1 << 61));
        const int64_t place = random_permute((int64_t)random_below((uint64_t)large), large, first);
        check(place >= 0 && place < large, "%ld is outside of %ld", (long)place, (long)large);
    }
}

// Mean, variance, skewness, kurtosis, and the share beyond two standard deviations, each within five standard
// errors of what a normal distribution has.
static void test_normal(void *unused) {
    (void)unused;
    const int64_t count = 400000;
    const double n = (double)count;
    const uint64_t key = random_below(UINT64_MAX);
    double moments[4] = {0}, beyond = 0;
    for (int64_t i = 0; i < count; i++) {
        const double x = random_normal(key, (uint64_t)i);
        for (int power = 0; power < 4; power++) moments[power] += pow(x, power + 1) / n;
        beyond += (fabs(x) > 2) / n;
    }
    static const double expected[4] = {0, 1, 0, 3}, variances[4] = {1, 2, 15, 96};
    for (int power = 0; power < 4; power++)
        check(fabs(moments[power] - expected[power]) < 5 * sqrt(variances[power] / n), "moment %d is %g",
              power + 1, moments[power]);
    check(fabs(beyond - 0.0455003) < 5 * sqrt(0.0455003 / n), "%g lie beyond two standard deviations",
          beyond);
}

static double correlation(uint64_t key_a, uint64_t counter_a, uint64_t key_b, uint64_t counter_b,
                          int64_t count) {
    double sum = 0;
    for (uint64_t i = 0; i < (uint64_t)count; i++)
        sum += random_normal(key_a, counter_a + i) * random_normal(key_b, counter_b + i);
    return sum / (double)count;
}

static void test_independence(void *unused) {
    (void)unused;
    const int64_t count = 100000;
    const double limit = 5 / sqrt((double)count);
    const uint64_t key = random_below(UINT64_MAX);
    check(fabs(correlation(key, 0, key + 1, 0, count)) < limit, "neighbouring keys are correlated");
    check(fabs(correlation(key, 0, key, 1, count)) < limit, "neighbouring counters are correlated");
    check(fabs(correlation(key, 0, key ^ (uint64_t)1 << 63, 0, count)) < limit,
          "keys of one bit are correlated");
    check(fabs(correlation(random_key(1, "a"), 0, random_key(1, "b"), 0, count)) < limit,
          "names are correlated");
    check(fabs(correlation(random_key(1, "a"), 0, random_key(2, "a"), 0, count)) < limit,
          "seeds are correlated");
    check(random_key(1, "ab") != random_key(1, "ba"), "the order of a name's letters does not count");
    check(random_key(1, "") != random_key(2, ""), "the seed of an empty name does not count");
}

static void test_uniform(void *unused) {
    (void)unused;
    const int64_t count = 160000;
    const uint64_t key = random_below(UINT64_MAX);
    double buckets[64] = {0};
    for (int64_t i = 0; i < count; i++) {
        const double x = random_uniform(key, (uint64_t)i);
        check(x > 0 && x < 1, "%g is not in (0, 1)", x);
        buckets[(int)(x * 64)]++;
    }
    double chi_square = 0;
    for (int i = 0; i < 64; i++) chi_square += pow(buckets[i] - (double)count / 64, 2) / ((double)count / 64);
    check(chi_square < 63 + 6 * sqrt(2 * 63.0), "chi square of 63 degrees is %g", chi_square);
}

// --- parameter table ------------------------------------------------------------------------------------

static void check_joined(const ParameterTable *table, ParameterKind kind, ParameterKind next, int64_t layer) {
    const Parameter *first = parameter_find(table, kind, layer), *second = parameter_find(table, next, layer);
    check(first->offset + first->count == second->offset, "%s does not follow %s", second->name, first->name);
    check(first->shape[1] == second->shape[1], "%s and %s have different columns", first->name, second->name);
}

static int64_t expected_size(const ModelConfig *c) {
    const int64_t layer =
        qkv_dim(c) * c->dim + c->heads * head_dim(c) * c->dim + 3 * c->ffn_dim * c->dim + 2 * c->dim;
    return 2 * c->vocab_size * c->dim + c->layers * layer + c->dim;
}

// The ranks' parts of a bucket follow one another and cover it, in padded and in flat numbering of elements.
static void check_bucket(const ParameterTable *table, int index) {
    const ParameterBucket *b = &table->buckets[index];
    int64_t end = b->offset, flat_end = b->flat_offset;
    for (int rank = 0; rank < table->ranks; rank++) {
        const ElementRange part = bucket_part(table, index, rank),
                           flat = bucket_part_flat(table, index, rank);
        check(part.first == end && part.first % PARAMETER_ALIGNMENT == 0, "bucket %d: part %d begins at %ld",
              index, rank, (long)part.first);
        check(flat.count >= 0 && (flat.count == 0 || flat.first == flat_end),
              "bucket %d: part %d begins at %ld", index, rank, (long)flat.first);
        check(flat.count == 0 || flat.first - b->flat_offset == part.first - b->offset,
              "bucket %d: part %d is elsewhere in its bucket", index, rank);
        end += part.count;
        flat_end += flat.count;
    }
    check(end == b->offset + b->count && flat_end == b->flat_offset + b->flat_count, "bucket %d: its end",
          index);
}

static void check_buckets(const ModelConfig *config, int ranks) {
    ParameterTable table = parameter_table_create(config, ranks), flat = parameter_table_create(config, 1);
    check(table.bucket_count == config->layers + 3, "%d buckets", table.bucket_count);
    int64_t end = 0, flat_end = 0;
    for (int i = 0; i < table.bucket_count; i++) {
        const ParameterBucket *b = &table.buckets[i];
        check(b->offset == end && b->flat_offset == flat_end && b->count >= b->flat_count,
              "bucket %d begins at %ld", i, (long)b->offset);
        check_bucket(&table, i);
        end += b->count;
        flat_end += b->flat_count;
    }
    check(end == table.elements && flat_end == table.flat_elements && flat_end == flat.elements,
          "%ld elements, %ld without padding for ranks", (long)table.elements, (long)table.flat_elements);
    for (int i = 0; i < table.count; i++) {
        const Parameter *p = &table.list[i];
        const ParameterBucket *b = &table.buckets[p->bucket];
        check(p->offset >= b->offset && p->offset + p->count <= b->offset + b->flat_count &&
                  p->decay == b->decay,
              "%s is not in its bucket", p->name);
        check(p->offset - b->offset + b->flat_offset == flat.list[i].offset, "%s: its place without padding",
              p->name);
    }
    parameter_table_free(&table);
    parameter_table_free(&flat);
}

static void check_table(const ModelConfig *config) {
    ParameterTable table = parameter_table_create(config, 1);
    check(table.count == 3 + 9 * config->layers, "%d tensors in %ld layers", table.count,
          (long)config->layers);
    check(table.model_size == expected_size(config), "%ld parameters, not %ld", (long)table.model_size,
          (long)expected_size(config));
    check(table.elements % PARAMETER_ALIGNMENT == 0, "%ld elements", (long)table.elements);
    int64_t end = 0, total = 0;
    bool decay = true;
    for (int i = 0; i < table.count; i++) {
        const Parameter *p = &table.list[i];
        const bool joins = p->kind == PARAM_KEY || p->kind == PARAM_VALUE || p->kind == PARAM_UP;
        check(p->offset >= end && p->offset < end + PARAMETER_ALIGNMENT,
              "%s begins at %ld, the last ended at %ld", p->name, (long)p->offset, (long)end);
        check(joins || p->offset % PARAMETER_ALIGNMENT == 0, "%s begins at %ld", p->name, (long)p->offset);
        check(p->count == p->shape[0] * p->shape[1] && p->dims == (p->shape[1] == 1 ? 1 : 2), "%s: its shape",
              p->name);
        check(p->decay == (p->dims == 2), "%s: decay", p->name);
        check(decay || !p->decay, "%s has decay, but stands after one without", p->name);
        check(parameter_find(&table, p->kind, p->layer) == p, "%s is not found", p->name);
        for (int j = 0; j < i; j++)
            check(strcmp(p->name, table.list[j].name) != 0, "%s is there twice", p->name);
        decay = p->decay;
        end = p->offset + p->count;
        total += p->count;
    }
    check(end <= table.elements && total == table.model_size, "%ld elements, %ld in tensors",
          (long)table.elements, (long)total);
    for (int64_t layer = 0; layer < config->layers; layer++) {
        check_joined(&table, PARAM_QUERY, PARAM_KEY, layer);
        check_joined(&table, PARAM_KEY, PARAM_VALUE, layer);
        check_joined(&table, PARAM_GATE, PARAM_UP, layer);
    }
    parameter_table_free(&table);
}

static void test_parameter_table(void *unused) {
    (void)unused;
    for (int i = 0; i < 20; i++) {
        const int64_t kv_heads = (int64_t)(1 + random_below(3)),
                      heads = kv_heads * (int64_t)(1 + random_below(3));
        const ModelConfig config = {.vocab_size = (int64_t)(2 + random_below(300)),
                                    .dim = heads * 2 * (int64_t)(1 + random_below(9)),
                                    .layers = (int64_t)(1 + random_below(5)),
                                    .heads = heads,
                                    .kv_heads = kv_heads,
                                    .ffn_dim = (int64_t)(2 + random_below(100))};
        check_table(&config);
        check_buckets(&config, (int)(1 + random_below(40)));
    }
    static const char *const names[] = {"tiny", "10M", "85M", "530M", "1B"};
    for (size_t i = 0; i < COUNT_OF(names); i++) check_table(model_preset(names[i]));
}

static void test_parameter_names(void *unused) {
    (void)unused;
    ParameterTable table = parameter_table_create(model_preset("530M"), 1);
    static const struct {
        ParameterKind kind;
        int64_t layer;
        const char *name;
        int64_t shape[2];
    } cases[] = {
        {PARAM_EMBEDDING, 0, "model.embed_tokens.weight", {128256, 1024}},
        {PARAM_QUERY, 0, "model.layers.0.self_attn.q_proj.weight", {1024, 1024}},
        {PARAM_KEY, 29, "model.layers.29.self_attn.k_proj.weight", {1024, 1024}},
        {PARAM_VALUE, 10, "model.layers.10.self_attn.v_proj.weight", {1024, 1024}},
        {PARAM_ATTENTION_OUT, 1, "model.layers.1.self_attn.o_proj.weight", {1024, 1024}},
        {PARAM_GATE, 2, "model.layers.2.mlp.gate_proj.weight", {1536, 1024}},
        {PARAM_UP, 3, "model.layers.3.mlp.up_proj.weight", {1536, 1024}},
        {PARAM_DOWN, 4, "model.layers.4.mlp.down_proj.weight", {1024, 1536}},
        {PARAM_ATTENTION_NORM, 5, "model.layers.5.input_layernorm.weight", {1024, 1}},
        {PARAM_FFN_NORM, 6, "model.layers.6.post_attention_layernorm.weight", {1024, 1}},
        {PARAM_FINAL_NORM, 0, "model.norm.weight", {1024, 1}},
        {PARAM_HEAD, 0, "lm_head.weight", {128256, 1024}},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const Parameter *p = parameter_find(&table, cases[i].kind, cases[i].layer);
        check(!strcmp(p->name, cases[i].name), "%s should be %s", p->name, cases[i].name);
        check(p->shape[0] == cases[i].shape[0] && p->shape[1] == cases[i].shape[1], "%s has shape [%ld, %ld]",
              p->name, (long)p->shape[0], (long)p->shape[1]);
    }
    check(llround((double)table.model_size / 1e5) == 5301, "530M has %ld parameters", (long)table.model_size);
    parameter_table_free(&table);
}

static float *initialized(const Parameter *parameter, uint64_t seed) {
    float *values = host_allocate((size_t)parameter->count, sizeof(float), "a test");
    parameter_initialize(values, parameter, 0, parameter->count, seed);
    return values;
}

// The standard deviation that the parameter should have, by the rule and not by the table under test.
// Truncating a normal distribution at three standard deviations leaves 0.98658 of its standard deviation.
static double expected_std(const Parameter *p, const ModelConfig *config) {
    switch (p->kind) {
        case PARAM_EMBEDDING: return 1;
        case PARAM_HEAD: return 0.98658 / sqrt((double)config->dim);
        case PARAM_ATTENTION_OUT:
        case PARAM_UP:
        case PARAM_DOWN: return 0.02 / sqrt(2.0 * (double)(p->layer + 1));
        default: return 0.02;
    }
}

static void test_initial_values(void *unused) {
    (void)unused;
    const ModelConfig *config = model_preset("tiny");
    ParameterTable table = parameter_table_create(config, 1);
    const uint64_t seed = random_below(UINT64_MAX);
    for (int i = 0; i < table.count; i++) {
        const Parameter *p = &table.list[i];
        const double n = (double)p->count, std = expected_std(p, config);
        float *values = initialized(p, seed);
        double sum = 0, squares = 0, largest = 0, ones = 0;
        for (int64_t j = 0; j < p->count; j++) {
            sum += values[j];
            squares += (double)values[j] * values[j];
            largest = fmax(largest, fabs(values[j]));
            ones += values[j] == 1;
        }
        free(values);
        if (p->dims == 1) {
            check(ones == n, "%s is not all ones", p->name);
            continue;
        }
        check(fabs(sum / n) < 5 * std / sqrt(n), "%s: its mean is %g", p->name, sum / n);
        check(fabs(sqrt(squares / n) / std - 1) < 5 / sqrt(2 * n), "%s: its deviation is %g, not %g", p->name,
              sqrt(squares / n), std);
        const double cut = 3 / sqrt((double)config->dim);
        check(p->kind == PARAM_HEAD ? largest <= cut && largest > 0.95 * cut : largest > 3.2 * std,
              "%s: its largest is %g", p->name, largest);
    }
    parameter_table_free(&table);
}

// Element i depends on seed, name and i: a tensor with more rows begins the same; another seed or name does
// not.
static void test_initial_values_key(void *unused) {
    (void)unused;
    ModelConfig larger = *model_preset("tiny");
    ParameterTable small_table = parameter_table_create(&larger, 1);
    larger.vocab_size += 100;
    ParameterTable large_table = parameter_table_create(&larger, 1);
    static const ParameterKind tested[] = {PARAM_EMBEDDING, PARAM_HEAD};
    const uint64_t seed = random_below(UINT64_MAX);
    for (size_t i = 0; i < COUNT_OF(tested); i++) {
        const Parameter *p = parameter_find(&small_table, tested[i], 0);
        float *values = initialized(p, seed), *other_seed = initialized(p, seed + 1);
        float *longer = initialized(parameter_find(&large_table, tested[i], 0), seed);
        Parameter renamed = *p;
        renamed.name[0] = 'x';
        float *other_name = initialized(&renamed, seed);
        const int64_t first = (int64_t)random_below((uint64_t)p->count);
        float *rest = host_allocate((size_t)p->count, sizeof(float), "a test");
        parameter_initialize(rest, p, first, p->count - first, seed);
        check(!memcmp(rest, values + first, (size_t)(p->count - first) * sizeof(float)),
              "%s depends on where one begins", p->name);
        free(rest);
        check(!memcmp(values, longer, (size_t)p->count * sizeof(float)), "%s depends on its length", p->name);
        check(memcmp(values, other_seed, (size_t)p->count * sizeof(float)) != 0, "%s: the seed", p->name);
        check(memcmp(values, other_name, (size_t)p->count * sizeof(float)) != 0, "%s: the name", p->name);
        free(values);
        free(other_seed);
        free(longer);
        free(other_name);
    }
    parameter_table_free(&small_table);
    parameter_table_free(&large_table);
}

// --- shapes ---------------------------------------------------------------------------------------------

static void check_config_of_cuda(void *config) {
    model_config_check((const ModelConfig *)config, 8);
}

static void test_config_check(void *unused) {
    (void)unused;
    static const struct {
        ModelConfig config;
        const char *message;
    } cases[] = {
        {{264, 130, 6, 4, 2, 384, 1e4, 1e-5}, "--dim 130 is not a multiple of --heads 4"},
        {{264, 128, 6, 4, 3, 384, 1e4, 1e-5}, "--heads 4 is not a multiple of --kv-heads 3"},
        {{264, 12, 6, 4, 2, 384, 1e4, 1e-5}, "gives heads of 3"},
        {{257, 128, 6, 4, 2, 384, 1e4, 1e-5},
         "--vocab-size 257: on this device it must be a multiple of 8; 264"},
        {{264, 128, 6, 4, 2, 383, 1e4, 1e-5},
         "--ffn-dim 383: on this device it must be a multiple of 8; 384"},
        {{264, 40, 6, 4, 2, 384, 1e4, 1e-5},
         "--dim / --heads 10: on this device it must be a multiple of 8; 16"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        check_dies(check_config_of_cuda, (void *)&cases[i].config, cases[i].message);
    const ModelConfig odd = {257, 40, 6, 4, 2, 383, 1e4, 1e-5};
    model_config_check(&odd, 1);
}

static void test_presets(void *unused) {
    (void)unused;
    int count = 0;
    for (; model_preset_names[count]; count++) model_config_check(model_preset(model_preset_names[count]), 8);
    check(count == 6, "%d presets", count);
    check(model_preset("530") == NULL && model_preset("") == NULL, "presets that are none");
}

void test_common(void) {
    test_run("bfloat16: special cases", test_bfloat16_rounding, NULL);
    test_run("bfloat16: nearest", test_bfloat16_nearest, NULL);
    test_run("storage types", test_storage, NULL);
    test_run("text", test_text, NULL);
    test_run("random: permutations", test_permutation, NULL);
    test_run("random: keys of permutations", test_permutation_keys, NULL);
    test_run("random: normal", test_normal, NULL);
    test_run("random: uniform", test_uniform, NULL);
    test_run("random: independence", test_independence, NULL);
    test_run("parameters: table", test_parameter_table, NULL);
    test_run("parameters: names", test_parameter_names, NULL);
    test_run("parameters: initial values", test_initial_values, NULL);
    test_run("parameters: keys of initial values", test_initial_values_key, NULL);
    test_run("model shapes: refusals", test_config_check, NULL);
    test_run("model shapes: presets", test_presets, NULL);
}
