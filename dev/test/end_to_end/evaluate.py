"""The tools that evaluate checkpoints: retrieval at a distance, loss by position."""

import functools
import json
import math
import os
import re

from .harness import (
    DEVICE, LIGHTHOUSE, ROOT, check, check_equal, check_refused, checkpoint, dev_script, finish, make_shards, read_file,
    read_metrics, test, train, write_file, write_shard,
)

NEEDLE = "\nthe pass key is {0}. remember it. {0} is the pass key.\n"
QUESTION = "\nthe pass key is "
# Between the losses of a run's batches and of single samples: other shapes of bfloat16 products may round differently.
TOLERANCE = 1e-6 if DEVICE == "cpu" else 1e-3


@functools.cache
def make_tool(name):
    """Makes a tool unless it is there already; its path."""
    path = os.path.join("build", DEVICE, "dev", "evaluate", name)
    finish(["make", "-s", "-C", ROOT, f"DEVICE={DEVICE}", path])
    return os.path.join(ROOT, path)


def tool(name, *arguments):
    return [make_tool(name), *arguments]


def evaluate(name, *arguments):
    """What a tool says on standard output, and its result."""
    said = finish(tool(name, *arguments, "--device", DEVICE, "--json", "result.json")).stdout
    return said, json.loads(read_file("result.json"))


def show(*arguments):
    """The prompts that passkey would put to the model."""
    lines = finish(tool("passkey", *arguments, "--device", DEVICE, "--show")).stdout.splitlines()
    return [json.loads(line) for line in lines]


def make_model(**options):
    """A checkpoint of initial weights; its directory."""
    write_shard("any.bin", list(range(256)) * 10)
    train(train_data="any.bin", steps=0, **options)
    return checkpoint(0)


# --- passkey --------------------------------------------------------------------------------------------------------


@test
def passkey_prompts_hide_one_digit_at_each_depth():
    prompts = show(make_model(), "--lengths", "69,100,170", "--depths", "0,15,50,100", "--trials", "2")
    # Of 69 tokens none is filler, of 100 are 31, of 170 are 101.
    places = {69: {0: 0, 15: 0, 50: 0, 100: 0}, 100: {0: 0, 15: 5, 50: 16, 100: 31},
              170: {0: 0, 15: 15, 50: 51, 100: 101}}
    cells = [(length, depth, index % 10) for length in places for depth in places[length] for index in range(20)]
    check_equal("prompts", [(p["length"], p["depth"], p["expected"][0] - ord("0")) for p in prompts], cells)
    fillers = set()
    for prompt, (length, depth, digit) in zip(prompts, cells, strict=True):
        text, place, needle = bytes(prompt["tokens"]).decode("ascii"), places[length][depth], NEEDLE.format(digit)
        what = f"{length} tokens, depth {depth}, {digit}: {text!r}"
        check_equal(f"length of {what}", len(text), length)
        check_equal(f"places of {what}", (prompt["hidden"], prompt["asked"]), (place, length - 1))
        check_equal(f"sentences of {what}", text[place:place + len(needle)], needle)
        check(text.endswith(QUESTION), f"no question at the end of {what}")
        filler = text[:place] + text[place + len(needle):-len(QUESTION)]
        check(re.fullmatch("[a-zA-Z]*", filler), f"filler is not letters alone: {what}")
        fillers.add((length, depth, filler))
    # The ten digits share their filler, other trials and depths have another; 69 tokens have none.
    check_equal("different fillers", len(fillers), 4 + 2 * 4 * 2)


@test
def copy_prompts_begin_a_piece_again():
    prompts = show(make_model(), "--task", "copy", "--lengths", "63,100", "--depths", "0,50,100")
    places = {63: {0: 0, 50: 0, 100: 0}, 100: {0: 0, 50: 19, 100: 37}}
    check_equal("how many prompts", len(prompts), 2 * 3 * 10)
    for prompt in prompts:
        length, place = prompt["length"], places[prompt["length"]][prompt["depth"]]
        text = bytes(prompt["tokens"]).decode("ascii")
        check_equal("places", (prompt["hidden"], prompt["asked"]), (place, length - 16))
        piece = text[place:place + 32]
        check_equal(f"end of {text}", text[length - 31:], piece[:31])
        check_equal(f"what is asked of {text}", bytes(prompt["expected"]).decode("ascii"), piece[16:])
        check(re.fullmatch("[a-zA-Z]*", text), f"not letters alone: {text}")
    check_equal("different prompts", len({str(prompt["tokens"]) for prompt in prompts}), len(prompts))


@test
def a_model_that_knows_nothing_finds_a_digit_in_ten():
    model = make_model(seq_len=2500, vocab_size=264)
    said, result = evaluate("passkey", model, "--depths", "0,100")
    check_equal("lengths", result["lengths"], [1024, 2048, 2500])
    check_equal("depths", result["depths"], [0, 100])
    check(0 < result["mean"] < 0.3, f"accuracy {result['mean']}, about 0.1 expected")
    for words in ("passkey", "2500", "100%", "mean"):
        check(words in said, f"\"{words}\" expected: {said}")
    _, result = evaluate("passkey", model, "--task", "copy", "--lengths", "63", "--depths", "0")
    check(result["accuracy"][0][0] < 0.2, f"copies {result['accuracy']}")


def train_on_prompts(length, steps, *arguments):
    """A model trained on prompts, each with the token that follows it as one sample; its directory."""
    prompts = show(make_model(), *arguments)
    write_shard("prompts.bin", [t for p in prompts for t in (*p["tokens"], p["expected"][-1])] + [256])
    train(train_data="prompts.bin", seq_len=length + 1, batch_size=8, global_batch=8, steps=steps, lr=5e-3,
          lr_schedule="cosine", warmup_steps=10, out="trained")
    return checkpoint(steps, "trained")


@test
def a_model_finds_the_digits_it_was_trained_to_find():
    kind = ["--lengths", "72", "--depths", "100"]
    model = train_on_prompts(72, 600, *kind, "--trials", "300", "--seed", "2")
    _, result = evaluate("passkey", model, *kind, "--trials", "3")  # in other letters
    check(result["mean"] > 0.8, f"accuracy {result['mean']}")


@test
def a_model_copies_what_it_knows_by_heart():
    kind = ["--task", "copy", "--lengths", "63", "--depths", "100"]
    model = train_on_prompts(63, 120, *kind)
    _, result = evaluate("passkey", model, *kind)
    check(result["mean"] > 0.8, f"accuracy {result['mean']}")
    _, result = evaluate("passkey", model, *kind, "--seed", "2")
    check(result["mean"] < 0.3, f"accuracy {result['mean']} in letters it never saw")


# A tokenizer that makes one token of a space and a digit.
FAKE_TOKENIZERS = r"""
import re
from types import SimpleNamespace

class Tokenizer:
    @staticmethod
    def from_file(path):
        open(path).close()
        return Tokenizer()

    def encode(self, text, add_special_tokens):
        units = re.findall(" [0-9]|.", text, re.DOTALL)
        return SimpleNamespace(ids=[int(unit) if len(unit) == 2 else ord(unit) for unit in units])
"""


def make_prompts(**changes):
    """A file of prompts by that tokenizer, with some of its entries changed."""
    write_file("fake/tokenizers.py", FAKE_TOKENIZERS.encode())
    write_file("tokenizer.json", b"{}")
    command = dev_script("evaluate/passkey_prompts.py", "--tokenizer", "tokenizer.json", "--tokens", "200")
    finish(["env", "PYTHONPATH=fake", *command])
    parts = json.loads(read_file("prompts.json"))
    write_file("prompts.json", json.dumps(parts | changes).encode())
    return parts


@test
def prompts_of_a_tokenizer():
    model = make_model()
    make_prompts()
    prompts = show(model, "--prompts", "prompts.json", "--lengths", "100", "--depths", "0,50")
    check_equal("answers", [p["expected"] for p in prompts], [[digit] for _ in range(2) for digit in range(10)])
    for prompt in prompts:
        tokens, digit = prompt["tokens"], prompt["expected"][0]
        check_equal("place", prompt["hidden"], 17 if prompt["depth"] == 50 else 0)
        text = "".join(f" {token}" if token < 10 else chr(token) for token in tokens)
        check(text[prompt["hidden"]:].startswith(NEEDLE.format(digit)), text)
        check(text.endswith(QUESTION[:-1]), text)
        check_equal("length", len(tokens), 100)
    evaluate("passkey", model, "--prompts", "prompts.json", "--lengths", "100", "--depths", "0")


@test
def prompts_that_are_no_prompts_are_refused():
    model = make_model()
    parts = make_prompts()
    passkey = tool("passkey", model, "--device", DEVICE, "--prompts", "prompts.json", "--lengths", "180")
    for changes, words in (
            ({"format": "prompts"}, ["passkey_prompts.py"]), ({"version": 2}, ["version 1"]),
            ({"filler": []}, ["filler"]), ({"filler": [7] * 179}, ["179", "180"]), ({"filler": {"a": 1}}, ["filler"]),
            ({"question": [264]}, ["question", "264"]), ({"question": [3, -1]}, ["question", "at 1"]),
            ({"question": ["a"]}, ["question"]), ({"question": [0.5]}, ["question"]),
            ({"needles": parts["needles"][:9]}, ["needles", "ten"]), ({"needles": [[1]] * 9 + [1]}, ["needles"]),
            ({"answers": list(range(9))}, ["answers", "9"]), ({"answers": [*range(9), 3]}, ["answers", "3 and 9"]),
            ({"answers": None}, ["answers"])):
        make_prompts(**changes)
        check_refused(passkey, "prompts.json", *words)
    write_file("prompts.json", b"[" * 100000)
    check_refused(passkey, "prompts.json", "passkey_prompts.py")
    os.remove("prompts.json")
    check_refused(passkey, "prompts.json", "No such file")
    check_refused(dev_script("evaluate/passkey_prompts.py", "--tokenizer", "t", "--tokens", "0"), "--tokens 0")


# --- loss by position -----------------------------------------------------------------------------------------------


def check_buckets(result, ends, name):
    """The weighted mean over the buckets is the loss."""
    buckets = result["buckets"]
    check_equal("buckets", [(b["first"], b["end"]) for b in buckets], list(zip([0, *ends], ends)))
    mean = sum(b[name] * (b["end"] - b["first"]) for b in buckets) / ends[-1]
    check(math.isclose(mean, result[name], rel_tol=1e-12), f"{name}: {mean} over the buckets, {result[name]} in all")
    check(len({b[name] for b in buckets}) == len(buckets), f"{name}: buckets are equal: {buckets}")


@test
def losses_by_position_sum_to_the_validation_loss():
    make_shards()
    shards = "shards/text_val_*.bin"
    train(**LIGHTHOUSE | {"val_data": shards, "val_batches": 3, "val_every": 8, "val_selection": "both", "steps": 8})
    metrics = read_metrics()[-1]
    for options, ends in (([], [64]), (["--buckets", "1,7,33"], [1, 7, 33, 64])):
        _, result = evaluate("position_loss", checkpoint(8), shards, "--samples", "6", *options)
        for name, expected in (("loss_dense", metrics["val_loss_dense"]), ("loss_as_trained", metrics["val_loss"])):
            check(math.isclose(result[name], expected, rel_tol=TOLERANCE), f"{name}: {result[name]}, in the run {expected}")
            check_buckets(result, ends, name)


@test
def a_dense_model_has_one_loss_by_position():
    make_shards()
    shards = "shards/text_val_*.bin"
    train(val_data=shards, val_batches=2, val_every=4)
    said, result = evaluate("position_loss", checkpoint(4), shards, "--samples", "4")
    check(math.isclose(result["loss_dense"], read_metrics()[-1]["val_loss"], rel_tol=TOLERANCE), f"{result['loss_dense']}")
    check("loss_as_trained" not in result and "as trained" not in said, said)
    _, result = evaluate("position_loss", checkpoint(4), shards, "--seq-len", "300", "--samples", "2")
    check_buckets(result, [64, 128, 256, 300], "loss_dense")


# --- bad input ------------------------------------------------------------------------------------------------------


@test
def what_cannot_be_evaluated_is_refused():
    make_shards()
    train(**LIGHTHOUSE)
    model, shards = checkpoint(4), "shards/text_val_*.bin"
    for name, arguments, words in (
            ("passkey", [], ["CHECKPOINT"]), ("passkey", ["none"], ["none", "not a good checkpoint"]),
            ("passkey", [model, "more"], ["CHECKPOINT"]), ("passkey", [model, "--length"], ["--length", "value"]),
            ("passkey", [model, "--task", "find"], ["--task find", "passkey|copy"]),
            ("passkey", [model, "--lengths", "68"], ["68", "69"]), ("passkey", [model], ["64", "69"]),
            ("passkey", [model, "--lengths", "62", "--task", "copy"], ["62", "63"]),
            ("passkey", [model, "--lengths", "100,90"], ["--lengths 100,90", "rising"]),
            ("passkey", [model, "--lengths", "100,"], ["--lengths 100,", "whole numbers"]),
            ("passkey", [model, "--lengths", "1k"], ["--lengths 1k"]),
            ("passkey", [model, "--depths", "0,101"], ["--depths 0,101", "100"]),
            ("passkey", [model, "--trials", "0"], ["--trials 0"]), ("passkey", [model, "--trials", "1,2"], ["--trials 1,2"]),
            ("passkey", [model, "--lengths", "80", "--depths", "0", "--json", "no/such"], ["no/such"]),
            ("passkey", [model, "--device", "abacus"], ["abacus", "cpu"]),
            ("passkey", [model, "--nonsense"], ["--nonsense", "--help"]),
            ("position_loss", [model], ["SHARDS"]), ("position_loss", [model, "none"], ["none"]),
            ("position_loss", [model, shards, "--seq-len", "66"], ["66"]),
            ("position_loss", [model, shards, "--samples", "1000000"], ["--samples 1000000", "64 tokens"]),
            ("position_loss", [model, shards, "--buckets", "16,64"], ["--buckets", "64"])):
        check_refused(tool(name, *arguments), *words)
    for name in ("passkey", "position_loss"):
        check(finish(tool(name, "--help")).stdout.startswith(f"{name}: "), "no help")
    train(train_data="shards/text_train_*.bin", vocab_size=256 + 8, out="torn", steps=0)
    write_file("torn/step_00000000/model.safetensors", b"torn")
    check_refused(tool("passkey", "torn/step_00000000"), "torn", "model.safetensors")
    write_shard("few.bin", [token % 100 for token in range(200)])
    train(train_data="few.bin", vocab_size=104, out="few", steps=0)
    check_refused(tool("passkey", "few/step_00000000", "--lengths", "80"), "104", "--prompts")
