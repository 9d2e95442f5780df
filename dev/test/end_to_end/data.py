"""The scripts that prepare data, compare runs and draw."""

import gzip
import io
import json
import lzma
import math
import os
import random
import tarfile

from .harness import (
    PROGRAM, as_tokens, check, check_equal, check_refused, dev_script, finish, make_text, read_directory, read_file,
    read_shard, test, write_file,
)


@test
def byte_shards_hold_the_documents():
    documents = {"a.txt": bytes(range(256)), "b.txt.gz": make_text(30), "c/d.xz": b"\xff\x00" * 700, "e": b"tail"}
    write_file("in/a.txt", documents["a.txt"])
    write_file("in/b.txt.gz", gzip.compress(documents["b.txt.gz"]))
    write_file("in/c/d.xz", lzma.compress(documents["c/d.xz"]))
    write_file("in/e", documents["e"])
    write_file("in/empty", b"")
    os.symlink("a.txt", "in/link")
    finish(dev_script("data/byte_shards.py", "--out", "o", "--name", "n", "--val-fraction", "0", "in"))
    check_equal("files", os.listdir("o"), ["n_train_000000.bin"])
    a, b, d, e = documents.values()
    check_equal("tokens", read_shard("o/n_train_000000.bin"), as_tokens(a, b, e, d))


@test
def byte_shards_hold_out_documents():
    documents = [bytes([number]) * 100 for number in range(40)]
    for number, document in enumerate(documents):
        write_file(f"in/{number:02}", document)
    command = dev_script("data/byte_shards.py", "--out", "o", "--val-fraction", "0.1", "--shard-tokens", "1000", "in")
    finish(command)
    first = read_directory("o")
    check_equal("files", list(first), [*(f"text_train_{shard:06}.bin" for shard in range(4)), "text_val_000000.bin"])
    held_out = read_shard("o/text_val_000000.bin")
    numbers = held_out[::101]
    check_equal("documents held out", len(numbers), 4)
    check_equal("validation", held_out, as_tokens(*(documents[number] for number in numbers)))
    shards = [read_shard(f"o/text_train_{shard:06}.bin") for shard in range(4)]
    check_equal("sizes", [len(shard) for shard in shards], [1000, 1000, 1000, 636])
    rest = [document for number, document in enumerate(documents) if number not in numbers]
    check_equal("training", sum(shards, []), as_tokens(*rest))
    finish(command)
    check(read_directory("o") == first, "a second run makes other shards")
    finish([*command, "--shard-tokens", "5000"])
    check_equal("files of a run with larger shards", sorted(os.listdir("o")),
                ["text_train_000000.bin", "text_val_000000.bin"])


@test
def byte_shards_hold_out_the_end_of_a_single_document():
    text = bytes(random.Random(3).randbytes(1000))
    write_file("one", text)
    said = finish(dev_script("data/byte_shards.py", "--out", "o", "--val-fraction", "0.1", "one")).stdout
    check_equal("training", read_shard("o/text_train_000000.bin"), as_tokens(text[:900]))
    check_equal("validation", read_shard("o/text_val_000000.bin"), as_tokens(text[900:]))
    counts = [text[:900].count(value) for value in range(256)] + [1]
    entropy = -sum(count / 901 * math.log(count / 901) for count in counts if count)
    check(f"{entropy:.4f} nats" in said, f"entropy {entropy} expected: {said}")


@test
def byte_shards_fail_cleanly():
    write_file("in/a", b"good")
    write_file("in/b.gz", gzip.compress(make_text(50))[:-20])
    check_refused(dev_script("data/byte_shards.py", "--out", "o", "in"), "b.gz")
    check_equal("files left", os.listdir("o"), [])
    check_refused(dev_script("data/byte_shards.py", "--out", "o", "missing"), "missing")
    check_refused(dev_script("data/byte_shards.py", "--out", "o", "--shard-tokens", "0", "in/a"), "--shard-tokens")


@test
def linux_source_keeps_directories_together():
    with tarfile.open("kernel.tar.xz", "w:xz") as archive:
        for path in ("k/Makefile", "k/fs/a.c", "k/fs/deep/x.c", "k/fs/deep/y.h", "k/fs/z.c", "k/fs/picture.png",
                     "k/mm/page.c"):
            member = tarfile.TarInfo(path)
            member.size = len(path)
            archive.addfile(member, io.BytesIO(path.encode()))
    finish(dev_script("data/linux_source.py", "--archive", "kernel.tar.xz", "--out", "o", "--val-fraction", "0"))
    order = [b"k/fs/deep/x.c", b"k/fs/deep/y.h", b"k/fs/a.c", b"k/fs/z.c", b"k/mm/page.c", b"k/Makefile"]
    check_equal("tokens", read_shard("o/linux_train_000000.bin"), as_tokens(*order))


@test
def curves_are_compared():
    for name, factor in (("a", 1), ("b", 1.005), ("c", 1.02)):
        lines = [json.dumps({"step": step, "loss": 3 * (factor if step == 15 else 1)}) for step in range(1, 21)]
        write_file(name, "\n".join(lines).encode())
    finish(dev_script("reference/compare_curves.py", "a", "b"))
    check_refused(dev_script("reference/compare_curves.py", "a", "c"), "0.01")


# Says what the step benchmark says, once the program has found its options valid.
FAKE_STEP = """#!/bin/sh
echo "$*" >> calls
'{program}' --device cpu --plan "$@" > plan || exit 1
case "$*" in
*' 131072 '*'selection off'*)
    echo '  weights 1.00 GiB' >&2
    echo 'error: out of memory on {gpu}: no room for attention (9.00 GiB); a shorter --seq-len needs less' >&2
    exit 1;;
*{broken}*) echo 'error: CUDA: launch failed' >&2; exit 1;;
esac
echo '{gpu}: device copy 4.20 TB/s'
echo '{{"gpu": "{gpu}", "model": "530M", "tokens": '$2', "recompute": "ffn", "ms": 1234.567, "optimizer_ms": 4.9,' \\
     '"tokens_per_second": 98765.4, "planned_gib": 30.5, "memory_gib": 31.25}}'
"""


def write_fake_step(gpu="Some GPU", broken="no such option"):
    write_file("step", FAKE_STEP.format(program=PROGRAM, gpu=gpu, broken=broken.replace(" ", "\\ ")).encode())
    os.chmod("step", 0o755)


@test
def the_cost_of_context_is_shown():
    def command(*arguments):
        return dev_script("bench/context.py", "--step", "./step", "--out", "o", "--no-picture", *arguments)

    def rows(said):
        return [line for line in said.splitlines() if line.startswith("| ") and "tokens" not in line]

    def calls():
        return len(read_file("calls").splitlines())

    check_refused(command(), "./step", "--step")
    write_fake_step(broken="--seq-len 65536")
    # Two lengths before the one that fails; what they gave is kept and not measured again.
    check_refused(command("--lengths", "65536", "32768"), "--seq-len 65536", "ended with 1: CUDA: launch failed")
    check_equal("calls", calls(), 4)
    kept = read_file("o/results.jsonl")
    check_equal("results", len(kept.splitlines()), 3)
    write_fake_step(gpu="Another GPU")
    check_refused(command(), "Another GPU and Some GPU")
    check_equal("results", read_file("o/results.jsonl"), kept)

    write_fake_step()
    os.remove("calls")
    said = finish(command()).stdout
    check_equal("calls", calls(), 4 + 6 + 7 - 3)
    measured = "ffn | 1234.6 | 98.8k | 31.25 |"
    four, everywhere = "Lighthouse, four layers dense", "Lighthouse in all layers"
    expected = []
    for tokens in (32768, 65536, 98304, 131072):
        dense = "| does not fit | | |" if tokens == 131072 else measured
        expected += [f"| {tokens} | dense | {dense}",
                     f"| {tokens} | {four} (3,4,{1536 if tokens == 98304 else 2048}) | {measured}",
                     f"| {tokens} | {everywhere} (3,4,2048) | {measured}"]
    expected += [f"| 262144 | {four} (3,4,2048) | {measured}", f"| 262144 | {everywhere} (3,4,2048) | {measured}",
                 f"| 524288 | {four} (3,4,2048) | {measured}", f"| 524288 | {everywhere} (4,4,4096) | {measured}",
                 f"| 1048576 | {everywhere} (4,4,4096) | {measured}"]
    check_equal("table", rows(said), expected)
    check("Some GPU, 530M model" in said and "4.9 ms" in said, said)

    # Results from elsewhere are shown without measuring, also of several files.
    lines = read_file("o/results.jsonl").splitlines(keepends=True)
    write_file("a", b"".join(lines[:9]))
    write_file("b", b"".join(lines[9:]))
    os.remove("step")
    said = finish(dev_script("bench/context.py", "--no-picture", "--draw", "b", "a")).stdout
    check_equal("table", rows(said), expected)
    write_file("b", b"".join(lines)[:-20])
    check_refused(dev_script("bench/context.py", "--no-picture", "--draw", "b"), f"b, line {len(lines)}")
    check_refused(command("--variants", "dense", "--lengths", "262144"), "--dense-up-to")
