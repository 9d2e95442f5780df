// The layer against PyTorch in float64.
#include "dev/test/selection/tests.h"

#include "checkpoint/safetensors.h"

#include <stdlib.h>

static double *fixture_values(const SafetensorsFile *file, char prefix, const char *name, size_t count) {
    char *full = format_string("%c.%s", prefix, name);
    const Tensor *tensor = safetensors_find(file, full);
    if (!tensor || tensor->type != STORAGE_FLOAT64 || (size_t)tensor->count != count)
        fatal("%s should have %zu float64 values %s", file->path, count, full);
    double *values = host_allocate(count, sizeof(double), full);
    if (!safetensors_read(file, tensor, 0, values, tensor->bytes)) fatal("cannot read %s", full);
    free(full);
    return values;
}

static int64_t fixture_number(const SafetensorsFile *file, char prefix, const char *name) {
    double *value = fixture_values(file, prefix, name, 1);
    const int64_t number = (int64_t)*value;
    free(value);
    return number;
}

static void check_fixture(const SafetensorsFile *file, char prefix, const char *name, const double *values,
                          size_t count, double tolerance) {
    double *expected = fixture_values(file, prefix, name, count);
    check_close(name, values, expected, count, tolerance);
    free(expected);
}

static LighthouseShape fixture_shape(const SafetensorsFile *file, char prefix) {
    return shape_of(fixture_number(file, prefix, "config.levels"),
                    fixture_number(file, prefix, "config.pool"), fixture_number(file, prefix, "config.topk"),
                    fixture_number(file, prefix, "config.tile"), fixture_number(file, prefix, "config.batch"),
                    fixture_number(file, prefix, "config.seq_len"),
                    (int)fixture_number(file, prefix, "config.heads"),
                    (int)fixture_number(file, prefix, "config.kv_heads"),
                    (int)fixture_number(file, prefix, "config.head_dim"));
}

static void check_case_of_fixture(const SafetensorsFile *file, char prefix) {
    const LighthouseShape shape = fixture_shape(file, prefix);
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    Layer l = layer_open(float64, &shape);
    double *qkv = fixture_values(file, prefix, "qkv", qkv_count(&shape));
    double *grad_out = fixture_values(file, prefix, "grad_out", out_count(&shape));
    double *angles = host_allocate(angle_count(&shape), sizeof(double), "angles"); // turns by nothing
    for (size_t i = 0; i < angle_count(&shape); i += 2) angles[i] = 1;
    run_rotation(&l, qkv, angles);
    int32_t *positions = run_selection(&l);
    double *selected = host_allocate(position_count(&shape), sizeof(double), "positions");
    for (size_t i = 0; i < position_count(&shape); i++) selected[i] = positions[i];
    double *out = run_forward(&l, qkv, angles), *grad_qkv = run_backward(&l, grad_out, true);
    const size_t rows = (size_t)(shape.batch * shape.heads * shape.entries);
    double *logsumexp = download(float64, l.layer.logsumexp, STORAGE_FLOAT64, rows);
    check_fixture(file, prefix, "positions", selected, position_count(&shape), 0);
    check_fixture(file, prefix, "out", out, out_count(&shape), 1e-11);
    check_fixture(file, prefix, "logsumexp", logsumexp, rows, 1e-11);
    check_fixture(file, prefix, "grad_qkv", grad_qkv, qkv_count(&shape), 1e-11);
    double *const all[] = {qkv, grad_out, angles, selected, out, grad_qkv, logsumexp};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions);
    layer_close(&l);
    float64->destroy(float64);
}

void layer_matches_pytorch(void *unused) {
    (void)unused;
    SafetensorsFile file;
    Reason reason;
    if (!safetensors_open(&file, fixture("lighthouse_layer.safetensors"), &reason)) fatal("%s", reason.text);
    check_case_of_fixture(&file, 'a');
    check_case_of_fixture(&file, 'b');
    safetensors_close(&file);
}
