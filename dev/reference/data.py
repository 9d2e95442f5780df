"""Token shards and the order of their samples, exactly as llmc/dataset.c and llmc/random.c have them."""

import glob
import struct

import torch

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
HEADER_BYTES = 1024
TOKEN_TYPES = {(20240520, 1): (2, torch.int16), (20240801, 7): (4, torch.int32)}


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def random_u64(key, counter):
    return mix(mix(key + GOLDEN * (counter + 1) & MASK) ^ key)


def random_key(seed, name):
    key = mix(seed + GOLDEN & MASK)
    for byte in name.encode():
        key = mix(key ^ byte) + GOLDEN & MASK
    return key


def random_permute(index, count, key):
    half_bits = 1
    while half_bits < 31 and 1 << 2 * half_bits < count:
        half_bits += 1
    mask = (1 << half_bits) - 1
    value = index
    while True:
        left, right = value >> half_bits, value & mask
        for turn in range(6):
            left, right = right, left ^ (random_u64(key + turn & MASK, right) & mask)
        value = left << half_bits | right
        if value < count:
            return value


class Dataset:
    def __init__(self, pattern, seq_len):
        self.seq_len, self.samples, self.shards = seq_len, 0, []
        for path in sorted(glob.glob(pattern)):
            with open(path, "rb") as file:
                magic, version, tokens = struct.unpack("<3i", file.read(12))
            samples = max(tokens - 1, 0) // seq_len
            self.shards.append((path, self.samples, samples, *TOKEN_TYPES[magic, version]))
            self.samples += samples
        if self.samples == 0:
            raise SystemExit(f"error: {pattern} holds no sample of {seq_len} tokens")

    def order(self, seed, position):
        """The sample that stands at `position` of the training order."""
        epoch, index = divmod(position, self.samples)
        return random_permute(index, self.samples, random_u64(random_key(seed, "epoch"), epoch))

    def read(self, sample):
        """int64 [seq_len + 1]: the inputs, and one token more for the targets."""
        for path, first, samples, token_bytes, token_type in self.shards:
            if first <= sample < first + samples:
                break
        with open(path, "rb") as file:
            file.seek(HEADER_BYTES + (sample - first) * self.seq_len * token_bytes)
            data = bytearray(file.read((self.seq_len + 1) * token_bytes))
        return torch.frombuffer(data, dtype=token_type).long() & (256**token_bytes - 1)

    def batch(self, seed, position, size):
        """Inputs and targets [size, seq_len] of the samples at `position`, `position` + 1, …"""
        tokens = torch.stack([self.read(self.order(seed, position + row)) for row in range(size)])
        return tokens[:, :-1], tokens[:, 1:]
