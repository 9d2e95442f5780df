#!/usr/bin/env python3
"""Trains a checkpoint of train_lighthouse on in PyTorch: same model, same data in the same order, same optimizer.

Everything is taken from the checkpoint (its step 0 is what `train_lighthouse --steps 0` leaves), and the options given
here go over those that it records. Weights are float32 and rounded to --dtype on their way into every layer: bfloat16
weights with float32 master weights. Gradients are accumulated in float32. Writes one line per step to --metrics, for
compare_curves.py.
"""

import argparse
import contextlib
import json
import os

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from checkpoint import load_config, load_optimizer, load_weights, read_json
from data import Dataset
from lighthouse import Geometry
from model import Decoder, parameter_groups

OPTIONS = {"train-data": str, "seed": int, "seq-len": int, "batch-size": int, "global-batch": int, "steps": int,
           "warmup-steps": int, "lr": float, "beta1": float, "beta2": float, "eps": float, "weight-decay": float,
           "grad-clip": float, "selection": str, "levels": int, "pool": int, "topk": int, "topk-tile": int,
           "rope-pooling": str, "dense-layers": str}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", metavar="DIR", required=True)
    parser.add_argument("--metrics", metavar="FILE", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--compile", default="on", choices=["on", "off"])
    for name, kind in OPTIONS.items():
        parser.add_argument("--" + name, type=kind, metavar="X", help="default: as the checkpoint has it")
    arguments = parser.parse_args()
    trainer = read_json(arguments.checkpoint, "trainer.json")
    arguments.first_step, arguments.first_sample = trainer["step"], trainer["samples"]
    recorded = {"rope-pooling": "before"} | trainer["options"]  # where it is not on record
    if recorded["lr-schedule"] != "constant" or recorded["decay-all"] != "off":
        parser.error("only --lr-schedule constant and --decay-all off are known here")
    for name, kind in OPTIONS.items():
        field = name.replace("-", "_")
        if getattr(arguments, field) is None:
            setattr(arguments, field, kind(recorded[name]))
    return arguments


def attention_settings(arguments):
    """The geometry of Lighthouse attention (None if all is dense) and the layers that are dense anyway."""
    if arguments.selection == "off":
        return None, []
    geometry = Geometry(arguments.levels, arguments.pool, arguments.topk, arguments.topk_tile,
                        arguments.rope_pooling)
    if not geometry.is_valid(arguments.seq_len):
        raise SystemExit(f"error: {geometry} does not work with {arguments.seq_len} tokens")
    dense = [] if arguments.dense_layers == "none" else [int(layer) for layer in arguments.dense_layers.split(",")]
    return geometry, dense


def load_model(arguments):
    model = Decoder(load_config(arguments.checkpoint), getattr(torch, arguments.dtype),
                    *attention_settings(arguments)).to(arguments.device)
    shapes = {name: tensor.shape for name, tensor in load_weights(arguments.checkpoint).items()}
    state = load_optimizer(arguments.checkpoint, shapes)
    model.load_state_dict(state["master"])
    optimizer = torch.optim.AdamW(
        parameter_groups(model, arguments.weight_decay), betas=(arguments.beta1, arguments.beta2), eps=arguments.eps,
        fused=arguments.device == "cuda")
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(arguments.first_step), device=arguments.device),
            "exp_avg": state["m"][name].to(arguments.device),
            "exp_avg_sq": state["v"][name].to(arguments.device)}
    if arguments.compile == "on":
        model.compile_parts()
    return model, optimizer


def train_step(model, optimizer, dataset, arguments, step):
    """One optimizer step; returns loss, gradient norm before clipping, and learning rate."""
    targets_in_all = arguments.global_batch * arguments.seq_len
    position = arguments.first_sample + (step - arguments.first_step) * arguments.global_batch
    optimizer.zero_grad()
    loss = 0.0
    for first in range(0, arguments.global_batch, arguments.batch_size):
        inputs, targets = dataset.batch(arguments.seed, position + first, arguments.batch_size)
        part = model.loss(inputs.to(arguments.device), targets.to(arguments.device)) / targets_in_all
        part.backward()
        loss += part.item()
    limit = arguments.grad_clip if arguments.grad_clip > 0 else float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()
    lr = arguments.lr * min(1.0, (step + 1) / max(arguments.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return loss, grad_norm, lr


def attention_backend(device):
    """cuDNN's attention where it can be had, else flash attention."""
    if device != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True)


def main():
    arguments = parse_arguments()
    model, optimizer = load_model(arguments)
    dataset = Dataset(arguments.train_data, arguments.seq_len)
    os.makedirs(os.path.dirname(os.path.abspath(arguments.metrics)), exist_ok=True)
    with open(arguments.metrics, "w") as metrics, attention_backend(arguments.device):
        for step in range(arguments.first_step, arguments.steps):
            loss, grad_norm, lr = train_step(model, optimizer, dataset, arguments, step)
            line = json.dumps({"step": step + 1, "loss": loss, "grad_norm": grad_norm, "lr": lr})
            print(line, flush=True)
            print(line, file=metrics, flush=True)


if __name__ == "__main__":
    main()
