#!/usr/bin/env python3
"""Lighthouse attention (arXiv 2605.06554) in PyTorch: what tests and comparisons check the program against.

Entry (level, index) of a head's pyramid covers the tokens [index, index + 1) * pool^level. The pyramid is all entries,
level after level from level 0, the tokens, on; `entries` [batch, heads, count] are the numbers in it of the selected
ones, in the order of the subsequence. Everything is differentiable, with the selection held fixed.

As a program it selects from the scores in files of test vectors and compares with what they say is selected. A file is
int32 seq_len, heads, levels, pool, topk, tile, entries, 0; float32 query and key scores [heads][seq_len]; int32 levels
and indices [heads][entries], in the order of the subsequence.
"""

import argparse
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def accumulator(x):
    """x in the type that sums and elementwise arithmetic are done in: float64 for float64, else float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Geometry:
    """How a sequence is cut: the options --levels, --pool, --topk and --topk-tile; and whether its queries and keys
    are turned before they are pooled or after: --rope-pooling."""
    levels: int
    pool: int
    topk: int
    tile: int
    rope_pooling: str = "before"

    @property
    def chunks(self):
        return self.topk // self.tile

    def level_entries(self, seq_len):
        return [seq_len // self.pool**level for level in range(self.levels)]

    def is_valid(self, seq_len):
        coarsest = self.level_entries(seq_len)[-1]
        return (self.pool >= 2 and self.pool & (self.pool - 1) == 0 and self.levels >= 2
                and self.tile % 2 == 0 and self.tile >= 2 * self.pool and self.topk > 0 and self.topk % self.tile == 0
                and seq_len % self.pool**(self.levels - 1) == 0
                and coarsest % self.chunks == 0 and coarsest // self.chunks >= self.tile)


# --- the selection ---------------------------------------------------------------------------------------------------


def norm_scores(x):
    """Level-0 scores [batch, heads, seq_len] of x [batch, seq_len, heads, head_dim]: Euclidean norms."""
    return accumulator(x.detach()).square().sum(-1).sqrt().transpose(1, 2)


def pool_scores(scores, level, geometry):
    """Scores of a level: the maximum over the tokens covered. NaN counts as -infinity."""
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    return scores.unflatten(-1, (-1, geometry.pool**level)).amax(-1)


def largest_first(scores):
    """Places along the last axis, by falling score; ties go to the lower place."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def choose_parents(query_scores, key_scores, tile):
    """Places [..., tile], rising: the tile / 2 of largest query score, and of the rest those of largest key score."""
    by_query = largest_first(query_scores)
    first, rest = by_query[..., :tile // 2], by_query[..., tile // 2:].sort(dim=-1).values
    by_key = largest_first(key_scores.gather(-1, rest))
    return torch.cat([first, rest.gather(-1, by_key[..., :tile // 2])], dim=-1).sort(dim=-1).values


def select(query_scores, key_scores, geometry):
    """`entries` from level-0 scores [batch, heads, seq_len], the key scores being those of each head's own key head."""
    batch, heads, seq_len = query_scores.shape
    counts = geometry.level_entries(seq_len)
    # Candidates [batch, heads, chunks, …] of a level, as indices in it, rising.
    candidates = torch.arange(counts[-1], device=query_scores.device).view(geometry.chunks, -1)
    candidates = candidates.expand(batch, heads, -1, -1)
    entries, sort_keys = [], []
    for level in reversed(range(geometry.levels)):
        is_parent = torch.zeros_like(candidates, dtype=torch.bool)
        if level > 0:
            query, key = (pool_scores(scores, level, geometry).gather(-1, candidates.flatten(2)).view_as(candidates)
                          for scores in (query_scores, key_scores))
            parents = choose_parents(query, key, geometry.tile)
            is_parent.scatter_(-1, parents, True)
        size = geometry.pool**level
        entries.append(sum(counts[:level]) + candidates)
        sort_keys.append(torch.where(is_parent, (candidates + 1).double() * size - 2.0**-level,
                                     candidates.double() * size))
        if level > 0:
            children = torch.arange(geometry.pool, device=candidates.device)
            candidates = (candidates.gather(-1, parents)[..., None] * geometry.pool + children).flatten(-2)
    order = torch.cat(sort_keys, dim=-1).argsort(dim=-1)
    return torch.cat(entries, dim=-1).gather(-1, order).flatten(2)


# --- the layer -------------------------------------------------------------------------------------------------------


def gather(x, entries, geometry):
    """Means over each entry's tokens, [batch, heads, count, head_dim], of x [batch, seq_len, heads, head_dim]."""
    wide = accumulator(x.transpose(1, 2))
    pyramid = torch.cat([wide.unflatten(2, (-1, geometry.pool**level)).mean(3) for level in range(geometry.levels)],
                        dim=2).to(x.dtype)
    return pyramid.gather(2, entries[..., None].expand(-1, -1, -1, x.shape[-1]))


def last_tokens(entries, seq_len, geometry):
    """The last token that each entry covers."""
    covered = [torch.arange(1, count + 1) * geometry.pool**level - 1
               for level, count in enumerate(geometry.level_entries(seq_len))]
    return torch.cat(covered).to(entries.device)[entries]


def turn(x, cos, sin):
    """Turns (x_j, x_{j + head_dim / 2}) of x [..., head_dim] by the angles of these cosines and sines."""
    first, second = accumulator(x).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def scatter(sub_out, entries, seq_len, geometry):
    """out [batch, seq_len, heads, head_dim]: an entry's output goes to as many tokens as it covers, from its last."""
    counts = geometry.level_entries(seq_len)
    pyramid = accumulator(sub_out).new_zeros(*sub_out.shape[:2], sum(counts), sub_out.shape[-1])
    pyramid = pyramid.scatter(2, entries[..., None].expand_as(sub_out), accumulator(sub_out))
    out = 0
    for level, outputs in enumerate(pyramid.split(counts, dim=2)):
        size = geometry.pool**level
        spread = outputs.repeat_interleave(size, dim=2)
        out = out + F.pad(spread, (0, 0, size - 1, 0))[:, :, :seq_len]
    return out.to(sub_out.dtype).transpose(1, 2)


def lighthouse_attention(query, key, value, geometry, entries=None, rope=None):
    """out [batch, seq_len, heads, head_dim] of queries, keys and values, which lie like it; keys and values may have
    fewer heads. Selects by norms if no selection is given. Queries and keys have been turned, or (with a table of
    cosines and sines [seq_len, head_dim / 2]) those of the selected entries turn as their last token would."""
    group = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(group, dim=2) for x in (key, value))
    if entries is None:
        entries = select(norm_scores(query), norm_scores(key), geometry)
    sub_query, sub_key, sub_value = (gather(x, entries, geometry) for x in (query, key, value))
    if rope is not None:
        last = last_tokens(entries, query.shape[1], geometry)
        angles = [part[last] for part in rope]
        sub_query, sub_key = turn(sub_query, *angles), turn(sub_key, *angles)
    sub_out = F.scaled_dot_product_attention(sub_query, sub_key, sub_value, is_causal=True)
    return scatter(sub_out, entries, query.shape[1], geometry)


# --- test vectors ----------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", metavar="FILE", nargs="+")
    for path in parser.parse_args().files:
        with open(path, "rb") as file:
            words = torch.frombuffer(bytearray(file.read()), dtype=torch.int32)
        seq_len, heads, levels, pool, topk, tile, count, _ = words[:8].tolist()
        scores, expected = words[8:].split([2 * heads * seq_len, 2 * heads * count])
        query, key = scores.view(torch.float32).view(2, 1, heads, seq_len)
        level, index = expected.view(2, heads, count).long()
        geometry = Geometry(levels, pool, topk, tile)
        starts = torch.tensor([0, *geometry.level_entries(seq_len)]).cumsum(0)
        different = int((select(query, key, geometry)[0] != starts[level] + index).sum())
        print(f"{path}: {seq_len} tokens, {geometry}, {heads} heads of {count} entries, {different} differ")
        if different:
            sys.exit(1)


if __name__ == "__main__":
    main()
