#!/usr/bin/env python3
"""Compares a checkpoint's logits, as train_lighthouse computed them, with those of Hugging Face transformers.

The checkpoint directory is loaded as it stands. LOGITS is little-endian: int32 magic 20241101, version 1, seq_len,
vocab, positions; int32 tokens[seq_len]; int32 positions[positions]; float32 logits[positions][vocab].

Hugging Face forms rotary angles in float32, train_lighthouse in float64: at 32K that alone changes float32 logits by
1e-4. So everything is also compared with the Hugging Face model given angles formed in float64. The tolerance holds for
that model at all positions, and for the model as it stands below position 1024; the greedy tokens are those of the model
as it stands. A bfloat16 checkpoint is also computed in float32, to show whose rounding is whose.
"""

import argparse
import struct
import sys

import torch
from transformers import AutoModelForCausalLM

MAGIC, VERSION = 20241101, 1
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
MARGIN = {torch.float32: 1e-3, torch.bfloat16: 0.5}
RANGES = {"all": (0, 1 << 62), "below 1024": (0, 1024), "from 30000": (30000, 1 << 62)}


def read_logits(path):
    with open(path, "rb") as file:
        magic, version, seq_len, vocab, count = struct.unpack("<5i", file.read(20))
        if (magic, version) != (MAGIC, VERSION):
            sys.exit(f"error: {path} is not a file of logits: magic {magic}, version {version}")
        def read(kind, *shape):
            values = torch.empty(shape, dtype=kind)
            if file.readinto(values.numpy()) != values.nbytes:
                sys.exit(f"error: {path} is too short")
            return values
        return read(torch.int32, seq_len).long(), read(torch.int32, count).long(), read(torch.float32, count, vocab)


def exact_angles(rotary, x, position_ids):
    """What LlamaRotaryEmbedding.forward returns, its angles formed in float64."""
    head_dim = 2 * rotary.inv_freq.shape[0]
    theta = (getattr(rotary.config, "rope_parameters", None) or vars(rotary.config))["rope_theta"]
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device=x.device) / head_dim)
    angles = (position_ids[..., None].double() * frequencies).repeat(1, 1, 2)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


@torch.no_grad()
def run_model(model, tokens, positions):
    """float32 logits [positions, vocab] on the CPU; the head is applied at the positions alone."""
    hidden = model.model(tokens[None].to(model.device), use_cache=False).last_hidden_state[0]
    return model.lm_head(hidden[positions.to(model.device)]).float().cpu()


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def compare(name, ours, theirs, positions, margin):
    """Prints the comparison; returns the relative errors by range, and how many tokens differ though they are sure."""
    print(name)
    errors = {}
    for range_name, (first, end) in RANGES.items():
        inside = (first <= positions) & (positions < end)
        if inside.any():
            errors[range_name] = relative_error(ours[inside], theirs[inside])
            print(f"  relative error, {range_name} ({int(inside.sum())} positions): {errors[range_name]:.3g}")
    top = theirs.topk(2).values
    equal, sure = ours.argmax(-1) == theirs.argmax(-1), top[:, 0] - top[:, 1] > margin
    print(f"  greedy token equal: {100 * equal.double().mean():.2f}% of all positions; "
          f"{int((equal & sure).sum())} of the {int(sure.sum())} whose margin is above {margin:g}")
    return errors, int((sure & ~equal).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("logits", metavar="LOGITS")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tolerance", type=float, help="of the relative error (default: 1e-4 float32, 2e-2 bfloat16)")
    parser.add_argument("--margin", type=float,
                        help="by which the best logit must lead for its token to have to agree "
                             "(default: 1e-3 float32, 0.5 bfloat16)")
    arguments = parser.parse_args()
    tokens, positions, ours = read_logits(arguments.logits)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.checkpoint, dtype="auto", attn_implementation="sdpa").to(arguments.device).eval()
    tolerance = TOLERANCE[model.dtype] if arguments.tolerance is None else arguments.tolerance
    margin = MARGIN[model.dtype] if arguments.margin is None else arguments.margin

    print(f"{arguments.checkpoint}: {model.dtype}, {len(tokens)} tokens, logits at {len(positions)} positions")
    as_it_stands = run_model(model, tokens, positions)
    errors, differing = compare("Hugging Face as it stands", ours, as_it_stands, positions, margin)
    rotary = model.model.rotary_emb
    rotary.forward = lambda x, position_ids: exact_angles(rotary, x, position_ids)
    exact = run_model(model, tokens, positions)
    exact_errors, _ = compare("Hugging Face with angles formed in float64", ours, exact, positions, margin)
    print(f"the angles change Hugging Face's own logits by {relative_error(as_it_stands, exact):.3g}")
    if model.dtype == torch.bfloat16:
        wide = run_model(model.float(), tokens, positions)
        print(f"from the same weights computed in float32: ours {relative_error(ours, wide):.3g}, "
              f"Hugging Face's {relative_error(exact, wide):.3g}")

    checked = [("with float64 angles", exact_errors["all"])]
    checked += [("as it stands, below position 1024", errors["below 1024"])] if "below 1024" in errors else []
    for what, error in checked:
        # Written so that an error that is no number fails.
        if not error <= tolerance:
            sys.exit(f"error: the relative error {error:.3g} ({what}) is above the tolerance of {tolerance:g}")
    if differing:
        sys.exit(f"error: {differing} greedy token(s) differ whose margin is above {margin:g}")


if __name__ == "__main__":
    main()
