"""What checkpoints are."""

import json
import math
import struct

from .harness import SHAPE, check_equal, checkpoint, make_shards, read_file, steps_kept, test, train


@test
def old_checkpoints_go_and_milestones_stay():
    make_shards()
    train(steps=8, save_every=1, keep=2, keep_every=3, out="milestones")
    check_equal("checkpoints", steps_kept("milestones"), [3, 6, 7, 8])
    train(steps=5, save_every=2, keep=1, out="newest")
    check_equal("checkpoints", steps_kept("newest"), [5])
    check_equal("latest", read_file("newest/latest").decode().strip(), "step_00000005")


def expected_shapes():
    dim, head_dim = SHAPE["dim"], SHAPE["dim"] // SHAPE["heads"]
    key_dim = SHAPE["kv-heads"] * head_dim
    shapes = {"model.embed_tokens.weight": [SHAPE["vocab-size"], dim], "model.norm.weight": [dim],
              "lm_head.weight": [SHAPE["vocab-size"], dim]}
    for layer in range(SHAPE["layers"]):
        parts = {"input_layernorm": [dim], "post_attention_layernorm": [dim], "self_attn.q_proj": [dim, dim],
                 "self_attn.k_proj": [key_dim, dim], "self_attn.v_proj": [key_dim, dim], "self_attn.o_proj": [dim, dim],
                 "mlp.gate_proj": [SHAPE["ffn-dim"], dim], "mlp.up_proj": [SHAPE["ffn-dim"], dim],
                 "mlp.down_proj": [dim, SHAPE["ffn-dim"]]}
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in parts.items()}
    return shapes


def read_safetensors(path):
    """Name → (type, shape), after checking that the tensors fill the file one after the other; and the metadata."""
    data = read_file(path)
    length, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        size = {"F32": 4, "BF16": 2}[entry["dtype"]] * math.prod(entry["shape"])
        check_equal(f"offsets of {name}", entry["data_offsets"], [end, end + size])
        end += size
    check_equal("size of the file", len(data), 8 + length + end)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}, metadata


@test
def a_checkpoint_is_a_hugging_face_llama():
    make_shards()
    train()
    with open(checkpoint(4) + "/config.json") as file:
        config = json.load(file)
    tensors, metadata = read_safetensors(checkpoint(4) + "/model.safetensors")
    expected = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 264,
                "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
                "num_key_value_heads": 2, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
                "max_position_embeddings": 40, "rms_norm_eps": 1e-5, "rope_theta": 10000, "bos_token_id": 256,
                "eos_token_id": 256}
    for name, value in expected.items():
        check_equal(f"config.json, {name}", config.get(name), value)
    check_equal("tensors", {name: shape for name, (_, shape) in tensors.items()}, expected_shapes())
    check_equal("types", {kind for kind, _ in tensors.values()},
                {{"float32": "F32", "bfloat16": "BF16"}[config["torch_dtype"]]})
    check_equal("metadata", metadata.get("format"), "pt")
