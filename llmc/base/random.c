#include "base/random.h"

#include <math.h>

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t random_u64(uint64_t key, uint64_t counter) {
    return mix(mix(key + 0x9e3779b97f4a7c15u * (counter + 1)) ^ key);
}

double random_uniform(uint64_t key, uint64_t counter) {
    return ((double)(random_u64(key, counter) >> 12) + 0.5) * 0x1p-52;
}

double random_normal(uint64_t key, uint64_t counter) {
    double radius = sqrt(-2.0 * log(random_uniform(key, 2 * counter)));
    return radius * cos(6.283185307179586 * random_uniform(key, 2 * counter + 1));
}

uint64_t random_key(uint64_t seed, const char *name) {
    uint64_t key = mix(seed + 0x9e3779b97f4a7c15u);
    for (; *name; name++) key = mix(key ^ (uint64_t)(unsigned char)*name) + 0x9e3779b97f4a7c15u;
    return key;
}

// Cycle walking: a Feistel network permutes the numbers of 2·half_bits bits, the fewest that hold count - 1.
// It is applied again until the value is below count. On each of its cycles this maps every member below
// count to the next such member, so it permutes 0 … count - 1.
int64_t random_permute(int64_t index, int64_t count, uint64_t key) {
    int half_bits = 1;
    while (half_bits < 31 && (int64_t)1 << (2 * half_bits) < count) half_bits++;
    const uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t value = (uint64_t)index;
    do {
        uint64_t left = value >> half_bits, right = value & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (random_u64(key + round, right) & mask);
            left = right;
            right = next;
        }
        value = left << half_bits | right;
    } while (value >= (uint64_t)count);
    return (int64_t)value;
}
