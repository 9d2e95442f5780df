// The layer on a device against float64's, and against itself.
#include "dev/test/selection/tests.h"

#include "dev/test/selection/picture.h"

#include <stdlib.h>
#include <string.h>

static void check_replayed(Device *device, Device *float64, const LighthouseShape *shape) {
    const double tolerance = device->ops->storage == STORAGE_BFLOAT16 ? 2e-2 : 1e-5;
    Layer tested = layer_open(device, shape), exact = layer_open(float64, shape);
    int32_t *positions = random_positions(shape);
    set_positions(&tested, positions);
    set_positions(&exact, positions);
    double *qkv = random_values(qkv_count(shape)), *grad_out = random_values(out_count(shape));
    double *angles = random_angles(shape);
    double *out = run_forward(&tested, qkv, angles), *expected_out = run_forward(&exact, qkv, angles);
    double *grad = run_backward(&tested, grad_out, true),
           *expected_grad = run_backward(&exact, grad_out, true);
    check_close("out with the same picks", out, expected_out, out_count(shape), tolerance);
    check_close("grad_qkv with the same picks", grad, expected_grad, qkv_count(shape), tolerance);
    double *const all[] = {qkv, grad_out, angles, out, expected_out, grad, expected_grad};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions);
    layer_close(&tested);
    layer_close(&exact);
}

void replayed_picks_give_the_same(void *argument) {
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    const LighthouseShape shapes[] = {shape_of(2, 2, 12, 4, 2, 168, 4, 2, 8),
                                      shape_of(3, 4, 96, 32, 1, 3072, 4, 2, 64),
                                      shape_of(4, 2, 64, 16, 2, 1024, 2, 2, 128)};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) check_replayed(argument, float64, &shapes[i]);
    float64->destroy(float64);
}

static int32_t *free_running_positions(Device *device, const LighthouseShape *shape, const double *qkv,
                                       const double *angles) {
    Layer l = layer_open(device, shape);
    run_rotation(&l, qkv, angles);
    int32_t *positions = run_selection(&l);
    layer_close(&l);
    return positions;
}

// Rounding of queries and keys moves their norms, so that other entries are picked where norms are close.
void few_picks_differ(void *argument) {
    const double allowed = 0.02;
    const LighthouseShape shape = shape_of(3, 4, 192, 32, 2, 6144, 4, 2, 64);
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    double *qkv = random_values(qkv_count(&shape)), *angles = random_angles(&shape);
    int32_t *tested = free_running_positions(argument, &shape, qkv, angles);
    int32_t *exact = free_running_positions(float64, &shape, qkv, angles);
    int64_t parents = 0, others = 0;
    for (int64_t i = 0; i < shape.batch * shape.heads; i++) {
        const Picture a = {&shape, tested + i * shape.pyramid, NULL, NULL, i};
        const Picture b = {&shape, exact + i * shape.pyramid, NULL, NULL, i};
        for (int level = 1; level < shape.levels; level++)
            for (int64_t j = 0; j < level_entries(&shape, level); j++) {
                parents += is_parent(&b, level, j);
                others += is_parent(&b, level, j) && !is_parent(&a, level, j);
            }
    }
    const double share = (double)others / (double)parents;
    printf("     %.3f%% of %ld picks differ from those in float64\n", 100 * share, (long)parents);
    check(share <= allowed, "more than %g%%", 100 * allowed);
    double *const all[] = {qkv, angles};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(tested);
    free(exact);
    float64->destroy(float64);
}

// Selection, forward and backward.
static void whole_layer(Device *device, const LighthouseShape *shape, const double *qkv, const double *angles,
                        const double *grad_out, int32_t **positions, double **out, double **grad_qkv) {
    Layer l = layer_open(device, shape);
    run_rotation(&l, qkv, angles);
    *positions = run_selection(&l);
    *out = run_forward(&l, qkv, angles);
    *grad_qkv = run_backward(&l, grad_out, true);
    layer_close(&l);
}

void layer_repeats_to_the_bit(void *argument) {
    const LighthouseShape shape = shape_of(3, 4, 96, 32, 2, 3072, 4, 2, 64);
    double *qkv = random_values(qkv_count(&shape)), *angles = random_angles(&shape);
    double *grad_out = random_values(out_count(&shape)), *out[2], *grad_qkv[2];
    int32_t *positions[2];
    for (int i = 0; i < 2; i++)
        whole_layer(argument, &shape, qkv, angles, grad_out, &positions[i], &out[i], &grad_qkv[i]);
    check(!memcmp(positions[0], positions[1], position_count(&shape) * sizeof(int32_t)), "other positions");
    check(!memcmp(out[0], out[1], out_count(&shape) * sizeof(double)), "another output");
    check(!memcmp(grad_qkv[0], grad_qkv[1], qkv_count(&shape) * sizeof(double)), "another gradient");
    double *const all[] = {qkv, angles, grad_out, out[0], out[1], grad_qkv[0], grad_qkv[1]};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions[0]);
    free(positions[1]);
}
