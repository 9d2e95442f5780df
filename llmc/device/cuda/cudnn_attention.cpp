#include "device/cuda/cudnn_attention.h"

#include <cudnn_frontend.h>

#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::SDPA_attributes;
using fe::graph::SDPA_backward_attributes;
using fe::graph::Tensor_attributes;
using Tensor = std::shared_ptr<Tensor_attributes>;

// Identifies tensors in a graph, and in the table of addresses that a run of the graph is given.
enum TensorId : int64_t { QUERY = 1, KEY, VALUE, OUT, LOGSUMEXP, GRAD_OUT, GRAD_QUERY, GRAD_KEY, GRAD_VALUE };
using Addresses = std::unordered_map<int64_t, void *>;

namespace {

struct Plan {
    AttentionShape shape; // as plan_shape gives it
    bool backward;
    Graph graph;
    int64_t workspace;
};

} // namespace

struct Attention {
    cudnnHandle_t handle;
    std::vector<std::unique_ptr<Plan>> plans;
};

// --- errors ---------------------------------------------------------------------------------------------

static std::string describe(const AttentionStrides &strides) {
    return "(" + std::to_string(strides.batch) + ", " + std::to_string(strides.token) + ", " +
           std::to_string(strides.head) + ")";
}

static std::string describe(const AttentionShape &shape, bool backward) {
    std::string text =
        std::string(backward ? "backward" : "forward") + (shape.causal ? ", causal" : ", full") +
        (shape.deterministic ? ", deterministic" : "") + ", batch " + std::to_string(shape.batch) + ", " +
        std::to_string(shape.query_len) + " queries, " + std::to_string(shape.key_len) + " keys, " +
        std::to_string(shape.heads) + " heads, " + std::to_string(shape.kv_heads) +
        " key/value heads, head_dim " + std::to_string(shape.head_dim) +
        ", (batch, token, head) strides: query " + describe(shape.query) + ", key " + describe(shape.key) +
        ", value " + describe(shape.value) + ", out " + describe(shape.output);
    if (backward)
        text += ", grad_query " + describe(shape.grad_query) + ", grad_key " + describe(shape.grad_key) +
                ", grad_value " + describe(shape.grad_value);
    return text;
}

[[noreturn]] static void fail(const Plan &plan, const char *step, std::string reason) {
    char details[1024] = "";
    cudnnGetLastErrorString(details, sizeof(details));
    if (details[0]) reason += std::string("; ") + details;
    for (char &c : reason)
        if (c == '\n' || c == '\r') c = ' ';
    fatal("cuDNN %zu: attention (%s): %s: %s", cudnnGetVersion(), describe(plan.shape, plan.backward).c_str(),
          step, reason.c_str());
}

static void check(fe::error_t status, const Plan &plan, const char *step) {
    if (status.is_bad()) fail(plan, step, status.get_message());
}

static void check_handle(cudnnStatus_t status, const char *what) {
    if (status != CUDNN_STATUS_SUCCESS) fatal("cuDNN: %s failed: %s", what, cudnnGetErrorString(status));
}

// --- graphs ---------------------------------------------------------------------------------------------

// The parts of a shape that an execution plan depends on, all else zero: such shapes can be compared as
// bytes.
static AttentionShape plan_shape(const AttentionShape &shape, bool backward) {
    AttentionShape key;
    memset(&key, 0, sizeof(key));
    key.batch = shape.batch;
    key.query_len = shape.query_len;
    key.key_len = shape.key_len;
    key.heads = shape.heads;
    key.kv_heads = shape.kv_heads;
    key.head_dim = shape.head_dim;
    key.causal = shape.causal;
    key.scale = shape.scale;
    key.query = shape.query;
    key.key = shape.key;
    key.value = shape.value;
    key.output = shape.output;
    if (backward) {
        key.deterministic = shape.deterministic;
        key.grad_query = shape.grad_query;
        key.grad_key = shape.grad_key;
        key.grad_value = shape.grad_value;
    }
    return key;
}

static std::vector<int64_t> query_dims(const AttentionShape &s) {
    return {s.batch, s.heads, s.query_len, s.head_dim};
}
static std::vector<int64_t> key_dims(const AttentionShape &s) {
    return {s.batch, s.kv_heads, s.key_len, s.head_dim};
}
static std::vector<int64_t> logsumexp_dims(const AttentionShape &s) {
    return {s.batch, s.heads, s.query_len, 1};
}

// In cuDNN's order of axes: batch, head, token, element.
static std::vector<int64_t> cudnn_strides(const AttentionStrides &s) {
    return {s.batch, s.head, s.token, 1};
}

static std::vector<int64_t> logsumexp_strides(const AttentionShape &s) {
    return {s.heads * s.query_len, s.query_len, 1, 1};
}

static Tensor input(Graph &graph, TensorId id, const char *name, const std::vector<int64_t> &dims,
                    const std::vector<int64_t> &strides, fe::DataType_t type = fe::DataType_t::BFLOAT16) {
    return graph.tensor(
        Tensor_attributes().set_name(name).set_uid(id).set_dim(dims).set_stride(strides).set_data_type(type));
}

static void output(const Tensor &tensor, TensorId id, const std::vector<int64_t> &dims,
                   const std::vector<int64_t> &strides, fe::DataType_t type = fe::DataType_t::BFLOAT16) {
    tensor->set_output(true).set_uid(id).set_dim(dims).set_stride(strides).set_data_type(type);
}

static void describe_forward(Graph &graph, const AttentionShape &shape) {
    Tensor query = input(graph, QUERY, "query", query_dims(shape), cudnn_strides(shape.query));
    Tensor key = input(graph, KEY, "key", key_dims(shape), cudnn_strides(shape.key));
    Tensor value = input(graph, VALUE, "value", key_dims(shape), cudnn_strides(shape.value));
    SDPA_attributes attributes;
    attributes.set_name("attention_forward").set_generate_stats(true).set_attn_scale((float)shape.scale);
    if (shape.causal)
        attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
    auto [out, logsumexp] = graph.sdpa(query, key, value, attributes);
    output(out, OUT, query_dims(shape), cudnn_strides(shape.output));
    output(logsumexp, LOGSUMEXP, logsumexp_dims(shape), logsumexp_strides(shape), fe::DataType_t::FLOAT);
}

static void describe_backward(Graph &graph, const AttentionShape &shape) {
    Tensor query = input(graph, QUERY, "query", query_dims(shape), cudnn_strides(shape.query));
    Tensor key = input(graph, KEY, "key", key_dims(shape), cudnn_strides(shape.key));
    Tensor value = input(graph, VALUE, "value", key_dims(shape), cudnn_strides(shape.value));
    Tensor out = input(graph, OUT, "out", query_dims(shape), cudnn_strides(shape.output));
    Tensor grad_out = input(graph, GRAD_OUT, "grad_out", query_dims(shape), cudnn_strides(shape.output));
    Tensor logsumexp = input(graph, LOGSUMEXP, "logsumexp", logsumexp_dims(shape), logsumexp_strides(shape),
                             fe::DataType_t::FLOAT);
    SDPA_backward_attributes attributes;
    attributes.set_name("attention_backward")
        .set_attn_scale((float)shape.scale)
        .set_deterministic_algorithm(shape.deterministic);
    if (shape.causal)
        attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
    auto [grad_query, grad_key, grad_value] =
        graph.sdpa_backward(query, key, value, out, grad_out, logsumexp, attributes);
    output(grad_query, GRAD_QUERY, query_dims(shape), cudnn_strides(shape.grad_query));
    output(grad_key, GRAD_KEY, key_dims(shape), cudnn_strides(shape.grad_key));
    output(grad_value, GRAD_VALUE, key_dims(shape), cudnn_strides(shape.grad_value));
}

static void build(Plan &plan, cudnnHandle_t handle) {
    Graph &graph = plan.graph;
    graph.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (plan.backward)
        describe_backward(graph, plan.shape);
    else
        describe_forward(graph, plan.shape);
    check(graph.validate(), plan, "not supported");
    check(graph.build_operation_graph(handle), plan, "its graph cannot be built");
    check(graph.create_execution_plans({fe::HeurMode_t::A}), plan, "no execution plan");
    check(graph.check_support(), plan, "not supported on this GPU");
    check(graph.build_plans(), plan, "its execution plan cannot be built");
    check(graph.get_workspace_size(plan.workspace), plan, "its workspace is unknown");
}

static Plan &find_plan(Attention *attention, const AttentionShape *shape, bool backward) {
    const AttentionShape wanted = plan_shape(*shape, backward);
    for (const std::unique_ptr<Plan> &plan : attention->plans)
        if (plan->backward == backward && !memcmp(&plan->shape, &wanted, sizeof(wanted))) return *plan;
    std::unique_ptr<Plan> plan = std::make_unique<Plan>();
    memcpy(&plan->shape, &wanted, sizeof(wanted));
    plan->backward = backward;
    try {
        build(*plan, attention->handle);
    } catch (const std::exception &error) {
        fail(*plan, "not supported", error.what());
    }
    attention->plans.push_back(std::move(plan));
    return *attention->plans.back();
}

// --- interface ------------------------------------------------------------------------------------------

Attention *cudnn_attention_create(cudaStream_t stream) {
    Attention *attention = new Attention;
    check_handle(cudnnCreate(&attention->handle), "starting it");
    check_handle(cudnnSetStream(attention->handle, stream), "setting its stream");
    return attention;
}

void cudnn_attention_destroy(Attention *attention) {
    attention->plans.clear();
    check_handle(cudnnDestroy(attention->handle), "ending it");
    delete attention;
}

size_t cudnn_attention_workspace(Attention *attention, const AttentionShape *shape, bool backward) {
    return (size_t)find_plan(attention, shape, backward).workspace;
}

void cudnn_attention_forward(Attention *attention, void *out, float *logsumexp, const void *query,
                             const void *key, const void *value, const AttentionShape *shape,
                             void *workspace) {
    Plan &plan = find_plan(attention, shape, false);
    Addresses addresses = {{QUERY, const_cast<void *>(query)},
                           {KEY, const_cast<void *>(key)},
                           {VALUE, const_cast<void *>(value)},
                           {OUT, out},
                           {LOGSUMEXP, logsumexp}};
    check(plan.graph.execute(attention->handle, addresses, workspace), plan, "failed");
}

void cudnn_attention_backward(Attention *attention, void *grad_query, void *grad_key, void *grad_value,
                              const void *grad_out, const void *query, const void *key, const void *value,
                              const void *out, const float *logsumexp, const AttentionShape *shape,
                              void *workspace) {
    Plan &plan = find_plan(attention, shape, true);
    Addresses addresses = {{QUERY, const_cast<void *>(query)},
                           {KEY, const_cast<void *>(key)},
                           {VALUE, const_cast<void *>(value)},
                           {OUT, const_cast<void *>(out)},
                           {LOGSUMEXP, const_cast<float *>(logsumexp)},
                           {GRAD_OUT, const_cast<void *>(grad_out)},
                           {GRAD_QUERY, grad_query},
                           {GRAD_KEY, grad_key},
                           {GRAD_VALUE, grad_value}};
    check(plan.graph.execute(attention->handle, addresses, workspace), plan, "failed");
}
