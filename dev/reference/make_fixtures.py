#!/usr/bin/env python3
"""Makes fixtures/dense_step.safetensors: two optimizer steps of a small model in float64, for the self-test.

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

All tensors are F64. The sizes are odd on purpose, clipping is active in both steps, and epsilon is large enough for the
update to depend on the gradient's scale.
"""

import os

import torch
from safetensors.torch import save_file

from model import Config, Decoder, parameter_groups

CONFIG = Config(vocab_size=23, dim=36, layers=2, heads=6, kv_heads=2, ffn_dim=14, rope_theta=500.0, norm_eps=1e-5)
ADAMW = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.3}
GRAD_CLIP = 0.25
MICRO_BATCHES, BATCH, SEQ_LEN = 2, 2, 19
SEED = 20240520


def make_model(generator):
    model = Decoder(CONFIG, torch.float64).double()
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


def main():
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

    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "dense_step.safetensors")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file(tensors, path)
    print(f"{path}: {os.path.getsize(path)} bytes, loss {scalars['loss']:.6f} then {scalars['loss_2']:.6f}, "
          f"gradient norm {scalars['grad_norm']:.6f} then {scalars['grad_norm_2']:.6f}")


if __name__ == "__main__":
    main()
