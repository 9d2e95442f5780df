// Turning pairs of values by an angle: rotary positions, and their inverse in the backward of gather.
#pragma once
#include "device/cuda/vector.cuh"

// The cosines and sines of N neighbouring angles.
template <int N> struct Angles { Floats<N> cosines, sines; };

// From memory, where each cosine is followed by its sine.
template <int N> __device__ inline Angles<N> load_angles(const float *from) {
    const Floats<2 *N> both = load<2 * N>(from);
    Angles<N> angles;
#pragma unroll
    for (int i = 0; i < N; i++) {
        angles.cosines.x[i] = both.x[2 * i];
        angles.sines.x[i] = both.x[2 * i + 1];
    }
    return angles;
}

// Turns the pairs (a_i, b_i), forwards (direction 1) or back (-1).
template <int N>
__device__ inline void turn(Floats<N> &a, Floats<N> &b, const Angles<N> &angles, float direction) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float x = a.x[i], y = b.x[i], sine = direction * angles.sines.x[i];
        a.x[i] = x * angles.cosines.x[i] - y * sine;
        b.x[i] = y * angles.cosines.x[i] + x * sine;
    }
}
