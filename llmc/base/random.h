// Counter-based random numbers: each is a function of a key and a counter, so there is no state to store, and
// any process can compute any part of a sequence.
#pragma once
#include <stdint.h>

// A well mixed 64-bit word from a key and a counter (the finalizer of SplitMix64, applied twice;
// doi 10.1145/2660193.2660195).
uint64_t random_u64(uint64_t key, uint64_t counter);

// Uniform in (0, 1).
double random_uniform(uint64_t key, uint64_t counter);

// Standard normal (Box and Muller).
double random_normal(uint64_t key, uint64_t counter);

// The key of the random sequence called `name` under this seed; different names give unrelated sequences.
uint64_t random_key(uint64_t seed, const char *name);

// The element at `index` of a pseudo-random permutation of 0 … count-1; each key gives another permutation.
int64_t random_permute(int64_t index, int64_t count, uint64_t key);
