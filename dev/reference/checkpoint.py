"""Reads checkpoints of train_lighthouse: the model's shape, weights and moments, and the options of the run."""

import glob
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


def load_flat(directory):
    """{"master": …, "m": …, "v": …}, each one flat tensor, put together from the files of all ranks."""
    flat = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), "optimizer-*-of-*.safetensors"))):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            first, count = ([int(number) for number in metadata[key].split(",") if number] for key in ("first", "count"))
            for kind in file.keys():
                part, place = file.get_tensor(kind), 0
                flat.setdefault(kind, part.new_zeros(int(metadata["total"])))
                for begin, length in zip(first, count):
                    flat[kind][begin:begin + length] = part[place:place + length]
                    place += length
    return flat


def load_optimizer(directory, shapes):
    """{"master": …, "m": …, "v": …}, each name → tensor."""
    flat = load_flat(directory)
    state, offset = {kind: {} for kind in flat}, 0
    for name, joined in flat_order(sum(name.endswith("q_proj.weight") for name in shapes)):
        if not joined:
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
        count = math.prod(shapes[name])
        for kind in flat:
            state[kind][name] = flat[kind][offset:offset + count].view(shapes[name])
        offset += count
    return state
