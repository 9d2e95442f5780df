// Counter-based random numbers: each is a function of a key and a counter, so nothing has to be stored,
// and any part of a sequence can be made anywhere.
#pragma once
#include <stdint.h>

// A well mixed 64-bit word from a key and a counter (the finalizer of SplitMix64, applied twice;
// doi 10.1145/2660193.2660195).
uint64_t random_u64(uint64_t key, uint64_t counter);

// Uniform in (0, 1).
double random_uniform(uint64_t key, uint64_t counter);

// Standard normal (Box and Muller).
double random_normal(uint64_t key, uint64_t counter);

// A key for a named sequence of its own under `seed`.
uint64_t random_key(uint64_t seed, const char *name);

// Where item `index` of `count` goes in a pseudo-random order of 0 … count-1: a bijection for every key.
int64_t random_permute(int64_t index, int64_t count, uint64_t key);
