"""What the program says, and what it refuses."""

import os
import re
import socket

from .harness import (
    PROGRAM, as_tokens, check, check_refused, checkpoint, command_line, finish, make_shards, make_text,
    read_directory, read_metrics, test, train, write_file, write_shard,
)

HELP_OPTIONS = """train-data val-data seed model vocab-size dim layers heads kv-heads ffn-dim rope-theta norm-eps
    seq-len batch-size global-batch selection levels pool topk topk-tile scorer rope-pooling dense-layers steps lr
    warmup-steps lr-schedule final-lr-frac beta1 beta2 eps weight-decay grad-clip out save-every keep keep-every resume
    val-every val-batches val-selection log-every device recompute plan deterministic cp zero collective-timeout
    async-save on-save-error verify-checkpoint max-nonfinite skip-outliers outlier-window time-limit help""".split()


@test
def help_lists_every_option():
    said = finish([PROGRAM, "--help"]).stdout
    missing = [name for name in HELP_OPTIONS if f"--{name} " not in said]
    check(not missing, f"--help does not list {', '.join(missing)}")


@test
def a_plan_is_printed_and_nothing_written():
    make_shards()
    said = finish(command_line() + ["--plan"]).stdout
    check("weights" in said and "activations" in said and "total" in said, said)
    check(not os.path.exists("out"), "--plan made the output directory")


@test
def a_start_says_what_the_run_is_and_takes():
    make_shards()
    version = finish([PROGRAM, "--version"]).stdout
    check(re.fullmatch(r"train_lighthouse \d+\.\d+\.\d+\n", version), f"--version says {version}")
    said = train(steps=4, global_batch=6, val_data="shards/text_val_*.bin", val_every=3, log_every=4).stdout
    samples = int(re.search(r"^data: (\d+) samples", said, re.MULTILINE)[1])
    for pattern in (rf"^{version.strip()} on {re.escape(socket.gethostname())}, \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d ",
                    rf"^run: 4 steps, {4 * 6 * 40} tokens$", rf"a step takes 6, the run {24 / samples:.2f} epochs$",
                    r"^checkpoints: [\d.]+ MiB each, [\d.]+ MiB for those to come; [\d.]+ [KMGT]iB free on the disk of"):
        check(re.search(pattern, said, re.MULTILINE), f"{pattern} is not in {said}")
    size = re.search(r"^checkpoints: ([\d.]+) MiB each", said, re.MULTILINE)[1]
    written = sum(len(data) for data in read_directory(checkpoint(4)).values()) / 2**20
    check(abs(float(size) - written) < 0.02, f"{size} MiB were announced, {written} written")
    # A validation is printed though its step is not.
    steps = re.findall(r"^step (\d+)/4 .*?(val loss|left$)", said, re.MULTILINE)
    check(steps == [("3", "val loss"), ("4", "val loss")], f"{steps} in {said}")


@test
def odd_options_are_warned_of():
    make_shards()
    said = train(steps=3, warmup_steps=8, global_batch=700, lr_schedule="cosine", vocab_size=2000).stderr
    for word in ("--warmup-steps 8: ", "--lr-schedule cosine has no effect", "--global-batch 700",
                 "--vocab-size 264 would do"):
        check(sum(word in line for line in said.splitlines() if line.startswith("warning: ")) == 1, f"{word}: {said}")


@test
def wrong_options_are_refused():
    make_shards()
    for options, words in (
            ({"learning-rate": 1}, ["--learning-rate", "--help"]),
            ({"steps": "ten"}, ["--steps", "ten"]),
            ({"steps": "1e3"}, ["--steps", "1e3"]),
            ({"lr": "1e-3x"}, ["--lr", "1e-3x"]),
            ({"lr": "nan"}, ["--lr", "nan"]),
            ({"steps": ""}, ["--steps"]),
            ({"seq-len": "99999999999999999999"}, ["--seq-len", "99999999999999999999"]),
            ({"beta1": 1.5}, ["--beta1", "1.5"]),
            ({"layers": 0}, ["--layers", "0"]),
            ({"keep": 0}, ["--keep", "0"]),
            ({"lr-schedule": "exponential"}, ["--lr-schedule", "exponential", "cosine"]),
            ({"deterministic": "maybe"}, ["--deterministic", "maybe"]),
            ({"model": "7T"}, ["--model", "7T", "530M"]),
            ({"device": "tpu"}, ["--device", "tpu"]),
            ({"train-data": ""}, ["--train-data"]),
            ({"separator-token": 264}, ["--separator-token 264", "263"]),
            ({"dim": 50}, ["--dim", "50", "6"]),
            ({"kv-heads": 4}, ["--kv-heads", "4", "6"]),
            ({"dim": 42}, ["7"]),
            ({"global-batch": 3}, ["--global-batch", "3", "2"]),
            ({"resume": "nowhere"}, ["--resume", "nowhere"]),
            ({"resume": "latest"}, ["out"])):
        check_refused(command_line(**options), *words)
        check(not os.path.exists("out"), f"{options}: the output directory was made")
    check_refused([*command_line(), "stray"], "stray")
    check_refused([*command_line(), "--lr"], "--lr")
    check_refused([*command_line(), "-steps", "3"], "-steps", "two dashes", "--steps")
    check(not os.path.exists("out"), "the output directory was made")


@test
def wrong_data_is_refused():
    make_shards()
    tokens = as_tokens(make_text(20))
    write_shard("good.bin", tokens)
    write_shard("magic.bin", tokens, magic=20240521)
    write_shard("version.bin", tokens, version=2)
    write_shard("count.bin", tokens, count=len(tokens) + 1)
    write_shard("negative.bin", tokens, count=-1)
    write_shard("token.bin", tokens[:100] + [264] + tokens[100:])
    write_file("header.bin", b"short")
    write_shard("short.bin", tokens[:40])
    for data, words in (
            ("nothing-*.bin", ["nothing-*.bin"]), ("magic.bin", ["magic.bin", "20240521", "20240520"]),
            ("version.bin", ["version.bin", "2"]), ("count.bin", ["count.bin"]), ("negative.bin", ["negative.bin", "-1"]),
            ("token.bin", ["token.bin", "100", "264"]), ("header.bin", ["header.bin"]), ("short.bin", ["40", "41"])):
        check_refused(command_line(train_data=data), "--train-data", *words)
        check_refused(command_line(val_data=data), "--val-data", *words)
        check(not os.path.exists("out"), f"{data}: the output directory was made")
    done = train(train_data="[gs]*.bin")
    check("warning: " in done.stderr and "short.bin" in done.stderr, f"no warning of a short shard: {done.stderr}")


@test
def a_new_run_does_not_touch_an_old_one():
    make_shards()
    train()
    before = read_directory(checkpoint(4))
    check_refused(command_line(seed=3), "out", "--resume")
    check(read_directory(checkpoint(4)) == before and len(read_metrics()) == 4, "the old run changed")
