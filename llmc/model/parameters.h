// The parameter table: one row per tensor of the model. It drives allocation, initialization, the optimizer,
// checkpoints, export and tests. All tensors lie one after the other in flat buffers (weights, gradients,
// master weights, moments) at the offsets given here.
#pragma once
#include "model/config.h"

typedef enum {
    PARAM_EMBEDDING,
    PARAM_QUERY, // query, key and value stand together, so they are also one [qkv_dim, dim] matrix
    PARAM_KEY,
    PARAM_VALUE,
    PARAM_ATTENTION_OUT,
    PARAM_GATE, // gate and up stand together, so they are also one [2*ffn_dim, dim] matrix
    PARAM_UP,
    PARAM_DOWN,
    PARAM_HEAD,
    PARAM_ATTENTION_NORM,
    PARAM_FFN_NORM,
    PARAM_FINAL_NORM,
    PARAM_KINDS
} ParameterKind;

typedef struct {
    char name[80]; // as Hugging Face names it
    ParameterKind kind;
    int64_t layer; // 0 for tensors outside the layers
    int dims;      // 1 or 2
    int64_t shape[2];
    int64_t count;  // elements
    int64_t offset; // first element in the flat buffers
    int bucket;
    bool decay;      // whether weight decay applies unless it applies to all
    double init_std; // 0: all ones
    double init_cut; // draws beyond this many standard deviations are drawn again; 0: never
} Parameter;

// Neighbouring tensors whose gradients are complete at the same time of a backward: what the ranks of a run
// reduce at once, and divide among them. All of a bucket's tensors decay or none does.
typedef struct {
    int64_t offset, count;           // in the flat buffers; a multiple of ranks · PARAMETER_ALIGNMENT
    int64_t flat_offset, flat_count; // the same if there were one rank: as checkpoints count elements
    bool decay;
} ParameterBucket;

typedef struct {
    Parameter *list; // in the order of the flat buffers; the tensors with decay come first
    int count;
    ParameterBucket *buckets;
    int bucket_count;
    int ranks;             // that divide each bucket among them, padding included
    int64_t elements;      // of a flat buffer; a multiple of ranks · PARAMETER_ALIGNMENT, padding included
    int64_t flat_elements; // the same for one rank
    int64_t model_size;    // parameters proper
    int64_t layers;
} ParameterTable;

// Tensors (groups that stand together) start at a multiple of this many elements, for 16-byte accesses.
#define PARAMETER_ALIGNMENT 8

ParameterTable parameter_table_create(const ModelConfig *config, int ranks);
void parameter_table_free(ParameterTable *table);

// The tensor of that kind in that layer.
const Parameter *parameter_find(const ParameterTable *table, ParameterKind kind, int64_t layer);

// A run of elements.
typedef struct {
    int64_t first, count;
} ElementRange;

// The part of a bucket that is this rank's to update, as offsets into the flat buffers.
ElementRange bucket_part(const ParameterTable *table, int bucket, int rank);

// The same as checkpoints count elements, without the padding for ranks; the last parts may be shorter, or
// empty.
ElementRange bucket_part_flat(const ParameterTable *table, int bucket, int rank);

// Initial values of the elements of one tensor from `first` on, as float, into out[count]. Element i depends
// on the seed, the tensor's name and i alone, whatever the number of threads or ranks.
void parameter_initialize(float *out, const Parameter *parameter, int64_t first, int64_t count,
                          uint64_t seed);
