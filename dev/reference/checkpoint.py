"""Reads checkpoints of train_lighthouse: the model's shape, weights and moments, and the options of the run."""

import json
import math
import os

from safetensors import safe_open

from model import Config

ALIGNMENT = 8  # elements; llmc/parameters.h


def read_json(directory, name):
    with open(os.path.join(directory, name)) as file:
        return json.load(file)


def load_config(directory):
    fields = read_json(directory, "config.json")
    rope = fields.get("rope_parameters") or {}
    return Config(
        vocab_size=fields["vocab_size"], dim=fields["hidden_size"], layers=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"], kv_heads=fields["num_key_value_heads"],
        ffn_dim=fields["intermediate_size"], norm_eps=fields["rms_norm_eps"],
        rope_theta=float(fields.get("rope_theta", rope.get("rope_theta", 10000.0))))


def load_weights(directory):
    """Name → tensor, in the type they are stored in."""
    with safe_open(os.path.join(directory, "model.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def flat_order(layers):
    """The names in the order of the program's flat buffers (llmc/parameters.c), and whether each follows the one before
    without padding."""
    yield "model.embed_tokens.weight", False
    for layer in range(layers):
        for part, joined in [("self_attn.q_proj", False), ("self_attn.k_proj", True), ("self_attn.v_proj", True),
                             ("self_attn.o_proj", False), ("mlp.gate_proj", False), ("mlp.up_proj", True),
                             ("mlp.down_proj", False)]:
            yield f"model.layers.{layer}.{part}.weight", joined
    yield "lm_head.weight", False
    for layer in range(layers):
        yield f"model.layers.{layer}.input_layernorm.weight", False
        yield f"model.layers.{layer}.post_attention_layernorm.weight", False
    yield "model.norm.weight", False


def load_optimizer(directory, shapes):
    """{"master": …, "m": …, "v": …}, each name → tensor, of a checkpoint that one process wrote."""
    with safe_open(os.path.join(directory, "optimizer-00000-of-00001.safetensors"), "pt") as file:
        flat = {kind: file.get_tensor(kind) for kind in ("master", "m", "v")}
    state, offset = {kind: {} for kind in flat}, 0
    for name, joined in flat_order(sum(name.endswith("q_proj.weight") for name in shapes)):
        if not joined:
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
        count = math.prod(shapes[name])
        for kind in flat:
            state[kind][name] = flat[kind][offset:offset + count].view(shapes[name])
        offset += count
    return state
