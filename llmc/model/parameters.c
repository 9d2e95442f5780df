#include "model/parameters.h"

#include "base/random.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { IN_MODEL, IN_EVERY_LAYER } Place;

// One row per kind of tensor; sizes that depend on the model are looked up by `Size`.
typedef enum { ONE, VOCAB, DIM, QUERY_DIM, KV_DIM, FFN } Size;
// How tensors form buckets: by itself, with the others of its layer, with all its neighbours of this kind.
typedef enum { ALONE, BY_LAYER, TOGETHER } Bucketing;
typedef enum { ONES, NORMAL_UNIT, NORMAL_HEAD, NORMAL_FIXED, NORMAL_BY_DEPTH } Init;

static const struct {
    ParameterKind kind;
    Place place;
    const char *name; // %ld is the layer
    Size rows, columns;
    Init init;
    bool joins_previous; // no padding between this tensor and the one before it
    Bucketing bucketing;
} kinds[] = {
    {PARAM_EMBEDDING, IN_MODEL, "model.embed_tokens.weight", VOCAB, DIM, NORMAL_UNIT, false, ALONE},
    {PARAM_QUERY, IN_EVERY_LAYER, "model.layers.%ld.self_attn.q_proj.weight", QUERY_DIM, DIM, NORMAL_FIXED,
     false, BY_LAYER},
    {PARAM_KEY, IN_EVERY_LAYER, "model.layers.%ld.self_attn.k_proj.weight", KV_DIM, DIM, NORMAL_FIXED, true,
     BY_LAYER},
    {PARAM_VALUE, IN_EVERY_LAYER, "model.layers.%ld.self_attn.v_proj.weight", KV_DIM, DIM, NORMAL_FIXED, true,
     BY_LAYER},
    {PARAM_ATTENTION_OUT, IN_EVERY_LAYER, "model.layers.%ld.self_attn.o_proj.weight", DIM, QUERY_DIM,
     NORMAL_BY_DEPTH, false, BY_LAYER},
    {PARAM_GATE, IN_EVERY_LAYER, "model.layers.%ld.mlp.gate_proj.weight", FFN, DIM, NORMAL_FIXED, false,
     BY_LAYER},
    {PARAM_UP, IN_EVERY_LAYER, "model.layers.%ld.mlp.up_proj.weight", FFN, DIM, NORMAL_BY_DEPTH, true,
     BY_LAYER},
    {PARAM_DOWN, IN_EVERY_LAYER, "model.layers.%ld.mlp.down_proj.weight", DIM, FFN, NORMAL_BY_DEPTH, false,
     BY_LAYER},
    {PARAM_HEAD, IN_MODEL, "lm_head.weight", VOCAB, DIM, NORMAL_HEAD, false, ALONE},
    {PARAM_ATTENTION_NORM, IN_EVERY_LAYER, "model.layers.%ld.input_layernorm.weight", DIM, ONE, ONES, false,
     TOGETHER},
    {PARAM_FFN_NORM, IN_EVERY_LAYER, "model.layers.%ld.post_attention_layernorm.weight", DIM, ONE, ONES,
     false, TOGETHER},
    {PARAM_FINAL_NORM, IN_MODEL, "model.norm.weight", DIM, ONE, ONES, false, TOGETHER},
};

static int64_t size_of(Size size, const ModelConfig *config) {
    switch (size) {
        case ONE: return 1;
        case VOCAB: return config->vocab_size;
        case DIM: return config->dim;
        case QUERY_DIM: return config->heads * head_dim(config);
        case KV_DIM: return config->kv_heads * head_dim(config);
        case FFN: return config->ffn_dim;
    }
    return 0;
}

// As torchtitan initializes Llama 3; its truncated normals cut at ±2 absolute, which binds for none but the
// head's, which cuts at three standard deviations.
static double init_std(Init init, int64_t layer, const ModelConfig *config) {
    switch (init) {
        case ONES: return 0;
        case NORMAL_UNIT: return 1;
        case NORMAL_HEAD: return 1 / sqrt((double)config->dim);
        case NORMAL_FIXED: return 0.02;
        case NORMAL_BY_DEPTH: return 0.02 / sqrt(2.0 * (double)(layer + 1));
    }
    return 0;
}

// Pads the last bucket so that the ranks can divide it.
static void end_bucket(ParameterTable *table) {
    if (table->bucket_count == 0) return;
    ParameterBucket *bucket = &table->buckets[table->bucket_count - 1];
    bucket->flat_count = round_up(table->elements, PARAMETER_ALIGNMENT) - bucket->offset;
    table->flat_elements += bucket->flat_count;
    table->elements = round_up(table->elements, (int64_t)table->ranks * PARAMETER_ALIGNMENT);
    bucket->count = table->elements - bucket->offset;
}

static bool begins_bucket(const ParameterTable *table, size_t row, int64_t layer) {
    if (table->count == 0) return true;
    const Parameter *before = &table->list[table->count - 1];
    size_t row_before = 0;
    while (kinds[row_before].kind != before->kind) row_before++;
    const Bucketing bucketing = kinds[row].bucketing;
    return bucketing == ALONE || kinds[row_before].bucketing != bucketing ||
           (bucketing == BY_LAYER && before->layer != layer);
}

static void add_parameter(ParameterTable *table, size_t row, int64_t layer, const ModelConfig *config) {
    if (begins_bucket(table, row, layer)) {
        end_bucket(table);
        table->buckets[table->bucket_count++] = (ParameterBucket){.offset = table->elements,
                                                                  .flat_offset = table->flat_elements,
                                                                  .decay = kinds[row].columns != ONE};
    }
    Parameter *p = &table->list[table->count++];
    p->bucket = table->bucket_count - 1;
    p->kind = kinds[row].kind;
    p->layer = layer;
    const char *number = strstr(kinds[row].name, "%ld");
    if (number)
        snprintf(p->name, sizeof(p->name), "%.*s%ld%s", (int)(number - kinds[row].name), kinds[row].name,
                 (long)layer, number + 3);
    else
        snprintf(p->name, sizeof(p->name), "%s", kinds[row].name);
    p->shape[0] = size_of(kinds[row].rows, config);
    p->shape[1] = size_of(kinds[row].columns, config);
    p->dims = kinds[row].columns == ONE ? 1 : 2;
    p->count = p->shape[0] * p->shape[1];
    p->decay = p->dims == 2;
    p->init_std = init_std(kinds[row].init, layer, config);
    p->init_cut = kinds[row].init == NORMAL_HEAD ? 3 : 0;
    if (!kinds[row].joins_previous) table->elements = round_up(table->elements, PARAMETER_ALIGNMENT);
    p->offset = table->elements;
    table->elements += p->count;
    table->model_size += p->count;
}

ParameterTable parameter_table_create(const ModelConfig *config, int ranks) {
    ParameterTable table = {0};
    table.layers = config->layers;
    table.ranks = ranks;
    const size_t most = COUNT_OF(kinds) * (size_t)config->layers;
    table.list = host_allocate(most, sizeof(Parameter), "the parameter table");
    table.buckets = host_allocate(most, sizeof(ParameterBucket), "the parameter table");
    // Kinds of one place that stand next to each other in the list repeat together, layer by layer.
    for (size_t first = 0; first < COUNT_OF(kinds);) {
        size_t end = first + 1;
        if (kinds[first].place == IN_EVERY_LAYER)
            while (end < COUNT_OF(kinds) && kinds[end].place == IN_EVERY_LAYER) end++;
        int64_t repeats = kinds[first].place == IN_EVERY_LAYER ? config->layers : 1;
        for (int64_t layer = 0; layer < repeats; layer++)
            for (size_t row = first; row < end; row++) add_parameter(&table, row, layer, config);
        first = end;
    }
    end_bucket(&table);
    return table;
}

void parameter_table_free(ParameterTable *table) {
    free(table->list);
    free(table->buckets);
    *table = (ParameterTable){0};
}

const Parameter *parameter_find(const ParameterTable *table, ParameterKind kind, int64_t layer) {
    for (int i = 0; i < table->count; i++)
        if (table->list[i].kind == kind && table->list[i].layer == layer) return &table->list[i];
    assert(!"no such parameter");
    return NULL;
}

ElementRange bucket_part(const ParameterTable *table, int bucket, int rank) {
    const ParameterBucket *b = &table->buckets[bucket];
    const int64_t count = b->count / table->ranks;
    return (ElementRange){b->offset + rank * count, count};
}

ElementRange bucket_part_flat(const ParameterTable *table, int bucket, int rank) {
    const ParameterBucket *b = &table->buckets[bucket];
    const int64_t count = b->count / table->ranks;
    const int64_t first = min_i64(rank * count, b->flat_count);
    return (ElementRange){b->flat_offset + first, min_i64(count, b->flat_count - first)};
}

void parameter_initialize(float *out, const Parameter *parameter, int64_t first, int64_t count,
                          uint64_t seed) {
    const uint64_t key = random_key(seed, parameter->name);
    const uint64_t draws_per_element = 64; // a draw beyond 3σ happens once in 370: 64 in a row never
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        if (parameter->init_std == 0) {
            out[i] = 1;
            continue;
        }
        uint64_t draw = (uint64_t)(first + i) * draws_per_element;
        double value = random_normal(key, draw);
        while (parameter->init_cut > 0 && fabs(value) > parameter->init_cut)
            value = random_normal(key, ++draw);
        out[i] = (float)(value * parameter->init_std);
    }
}
