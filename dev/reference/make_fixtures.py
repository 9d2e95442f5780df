#!/usr/bin/env python3
"""Makes the self-test's fixtures, in float64: all tensors are F64, and the sizes are odd on purpose.

fixtures/dense_step.safetensors: two optimizer steps of a small model.

  config.<field>                        the model's shape, one value each
  adamw.<field>                         learning_rate, beta1, beta2, epsilon, weight_decay (on two-dimensional tensors)
  grad_clip                             as torch.nn.utils.clip_grad_norm_ has it: scales by grad_clip / (norm + 1e-6)
  tokens, targets                       [micro_batches * batch, seq_len]; the first `batch` rows are micro-batch one
  micro_batches                         how many there are, one value
  weights.<name>                        before the first step; norm weights are not ones
  loss, grads.<name>, grad_norm         of the first step; the gradient is that of the mean over all targets, before
                                        clipping
  after_1.<name>                        weights after the first step
  loss_2, grad_norm_2, after_2.<name>   the same for a second step on the same tokens: only here do the betas show

Clipping is active in both steps, and epsilon is large enough for the update to depend on the gradient's scale.

fixtures/lighthouse_layer.safetensors: forward and backward of Lighthouse attention, two cases, named a.<name> and
b.<name>. In b queries and keys come out of a few vectors, so that many scores are equal.

  config.<field>                        batch, seq_len, heads, kv_heads, head_dim, levels, pool, topk, tile: one value
  qkv, grad_qkv                         [batch * seq_len, (heads + 2 * kv_heads) * head_dim]: queries, keys and values,
                                        after RoPE, and their gradients, not turned back
  out, grad_out                         [batch * seq_len, heads * head_dim]: the output, and its gradient that was given
  positions                             [batch * heads, pyramid]: where in the subsequence an entry stands, or -1; level
                                        after level, from level 0
  logsumexp                             [batch * heads, entries] of the inner attention

fixtures/rope_pooling.safetensors: loss and gradients of a small model whose Lighthouse layers turn the selected entries
(--rope-pooling after). Its first layer is dense.

  config.<field>                        the model's shape, and levels, pool, topk and tile, one value each
  tokens, targets                       [batch, seq_len]
  weights.<name>, loss, grads.<name>    as of dense_step
"""

import dataclasses
import os

import torch
from safetensors.torch import save_file

from lighthouse import Geometry, gather, lighthouse_attention, norm_scores, select
from model import Config, Decoder, parameter_groups

CONFIG = Config(vocab_size=23, dim=36, layers=2, heads=6, kv_heads=2, ffn_dim=14, rope_theta=500.0, norm_eps=1e-5)
ADAMW = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.3}
GRAD_CLIP = 0.25
MICRO_BATCHES, BATCH, SEQ_LEN = 2, 2, 19
SEED = 20240520
LIGHTHOUSE_CASES = {
    "a": {"batch": 2, "seq_len": 84, "heads": 6, "kv_heads": 2, "head_dim": 4,
          "levels": 3, "pool": 2, "topk": 12, "tile": 4},
    "b": {"batch": 1, "seq_len": 120, "heads": 2, "kv_heads": 2, "head_dim": 6,
          "levels": 2, "pool": 4, "topk": 16, "tile": 8}}
PALETTE = 9  # vectors that queries and keys of case b come out of


# --- two steps of a dense model --------------------------------------------------------------------------------------


def make_model(generator, config=CONFIG, geometry=None, dense_layers=()):
    model = Decoder(config, torch.float64, geometry, dense_layers).double()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.data = noise / parameter.shape[1] ** 0.5 if parameter.dim() == 2 else 1 + 0.3 * noise
    model.model.embed_tokens.weight.data *= 5
    return model


def gradient_step(model, optimizer, tokens, targets):
    """Loss and gradients of the mean over all targets, micro-batch by micro-batch, then the clipped update."""
    optimizer.zero_grad()
    total = 0.0
    for inputs, outputs in zip(tokens.chunk(MICRO_BATCHES), targets.chunk(MICRO_BATCHES)):
        loss = model.loss(inputs, outputs) / targets.numel()
        loss.backward()
        total += loss.item()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP).item()
    assert grad_norm > GRAD_CLIP, "clipping must be active"
    optimizer.step()
    return total, grads, grad_norm


def dense_step():
    generator = torch.Generator().manual_seed(SEED)
    model = make_model(generator)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, ADAMW["weight_decay"]), lr=ADAMW["learning_rate"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["epsilon"])
    text = torch.randint(CONFIG.vocab_size, (MICRO_BATCHES * BATCH, SEQ_LEN + 1), generator=generator)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def snapshot(prefix):
        return {f"{prefix}.{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}

    scalars = {f"config.{name}": value for name, value in vars(CONFIG).items()}
    scalars |= {f"adamw.{name}": value for name, value in ADAMW.items()}
    scalars |= {"grad_clip": GRAD_CLIP, "micro_batches": MICRO_BATCHES}
    tensors = {"tokens": tokens.double(), "targets": targets.double(), **snapshot("weights")}
    scalars["loss"], grads, scalars["grad_norm"] = gradient_step(model, optimizer, tokens, targets)
    tensors |= {f"grads.{name}": grad for name, grad in grads.items()} | snapshot("after_1")
    scalars["loss_2"], _, scalars["grad_norm_2"] = gradient_step(model, optimizer, tokens, targets)
    tensors |= snapshot("after_2")
    tensors |= {name: torch.tensor([value], dtype=torch.float64) for name, value in scalars.items()}
    print(f"dense step: loss {scalars['loss']:.6f} then {scalars['loss_2']:.6f}, "
          f"gradient norm {scalars['grad_norm']:.6f} then {scalars['grad_norm_2']:.6f}")
    return tensors


# --- a Lighthouse layer ----------------------------------------------------------------------------------------------


def causal_logsumexp(query, key):
    """[batch, heads, count] for queries and keys [batch, heads, count, head_dim]."""
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).logsumexp(-1)


def lighthouse_case(config, palette, generator):
    batch, seq_len, heads, kv_heads, head_dim = list(config.values())[:5]
    geometry = Geometry(*list(config.values())[5:])
    assert geometry.is_valid(seq_len)

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    qkv = random(batch, seq_len, heads + 2 * kv_heads, head_dim)
    if palette:
        chosen = torch.randint(palette, (batch, seq_len, heads + kv_heads), generator=generator)
        qkv[:, :, :heads + kv_heads] = 2 * random(palette, head_dim)[chosen]
    grad_out = random(batch, seq_len, heads, head_dim)
    qkv.requires_grad_()
    query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=2)
    out = lighthouse_attention(query, key, value, geometry)
    out.backward(grad_out)

    own_key = key.detach().repeat_interleave(heads // kv_heads, dim=2)
    entries = select(norm_scores(query), norm_scores(own_key), geometry)
    positions = torch.full((batch, heads, sum(geometry.level_entries(seq_len))), -1)
    positions.scatter_(2, entries, torch.arange(entries.shape[2]).expand_as(entries))
    logsumexp = causal_logsumexp(*(gather(x.detach(), entries, geometry) for x in (query, own_key)))
    tokens = batch * seq_len
    tensors = {f"config.{name}": torch.tensor([number]) for name, number in config.items()}
    tensors |= {"qkv": qkv.detach().view(tokens, -1), "grad_qkv": qkv.grad.view(tokens, -1),
                "out": out.detach().reshape(tokens, -1), "grad_out": grad_out.view(tokens, -1),
                "positions": positions.flatten(0, 1), "logsumexp": logsumexp.flatten(0, 1)}
    return {name: tensor.double().contiguous() for name, tensor in tensors.items()}


def lighthouse_layer():
    tensors = {}
    for case, config in LIGHTHOUSE_CASES.items():
        generator = torch.Generator().manual_seed(SEED)
        made = lighthouse_case(config, PALETTE if case == "b" else 0, generator)
        print(f"Lighthouse case {case}: {made['logsumexp'].shape[1]} entries, output {made['out'].norm():.6f}, "
              f"gradient {made['grad_qkv'].norm():.6f}")
        tensors |= {f"{case}.{name}": tensor for name, tensor in made.items()}
    return tensors


# --- a model with --rope-pooling after -------------------------------------------------------------------------------


def rope_pooling():
    generator = torch.Generator().manual_seed(SEED)
    geometry = Geometry(levels=3, pool=2, topk=12, tile=4, rope_pooling="after")
    batch, seq_len = 2, 84
    assert geometry.is_valid(seq_len)
    config = dataclasses.replace(CONFIG, layers=3)
    model = make_model(generator, config, geometry, dense_layers=[0])
    text = torch.randint(config.vocab_size, (batch, seq_len + 1), generator=generator)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    loss = model.loss(tokens, targets) / targets.numel()
    loss.backward()
    print(f"--rope-pooling after: loss {loss.item():.6f}")
    scalars = {f"config.{name}": value for name, value in vars(config).items()}
    scalars |= {f"config.{name}": getattr(geometry, name) for name in ("levels", "pool", "topk", "tile")}
    scalars["loss"] = loss.item()
    tensors = {name: torch.tensor([value], dtype=torch.float64) for name, value in scalars.items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"weights.{name}": parameter.detach(), f"grads.{name}": parameter.grad}
    return tensors | {"tokens": tokens.double(), "targets": targets.double()}


# --- writing ---------------------------------------------------------------------------------------------------------


def main():
    directory = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
    os.makedirs(directory, exist_ok=True)
    for name, make in (("dense_step", dense_step), ("lighthouse_layer", lighthouse_layer),
                       ("rope_pooling", rope_pooling)):
        path = os.path.join(directory, f"{name}.safetensors")
        save_file(make(), path)
        print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
