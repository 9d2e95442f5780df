#include "model/rotary.h"

#include "parallel/sequence_parts.h"

#include <math.h>
#include <stdlib.h>

const char *const rope_pooling_names[] = {"before", "after", NULL};

// Formed in double: in float the angles would be off by 0.06 at a million.
static void fill_angles(double *angles, int64_t seq_len, int64_t half, double theta, Group context) {
    double *frequencies = host_allocate((size_t)half, sizeof(double), "RoPE frequencies");
    for (int64_t j = 0; j < half; j++) frequencies[j] = pow(theta, -2.0 * (double)j / (double)(2 * half));
#pragma omp parallel for
    for (int64_t i = 0; i < seq_len; i++) {
        const double position = (double)context_position(context, seq_len, i);
        for (int64_t j = 0; j < half; j++) {
            angles[(i * half + j) * 2] = cos(position * frequencies[j]);
            angles[(i * half + j) * 2 + 1] = sin(position * frequencies[j]);
        }
    }
    free(frequencies);
}

void rotary_upload(Device *device, void *angles, int64_t seq_len, int64_t head_dim, double theta,
                   Group context) {
    const StorageType accumulator = accumulator_type(device->ops->storage);
    const size_t count = (size_t)(seq_len * head_dim), bytes = count * storage_size(accumulator);
    double *values = host_allocate(count, sizeof(double), "RoPE angles");
    void *stored = host_allocate(bytes, 1, "RoPE angles");
    fill_angles(values, seq_len, head_dim / 2, theta, context);
    storage_from_double(stored, accumulator, values, count);
    device->upload(device, angles, stored, bytes);
    free(stored);
    free(values);
}
