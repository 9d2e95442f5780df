"""The scripts that show runs: curves, and mirrors of metrics.jsonl."""

import importlib.util
import json
import os
import subprocess

from .harness import ROOT, check, check_equal, dev_script, make_shards, read_file, resume, test, train, write_file


def load_runs():
    """The module dev/plot/runs.py."""
    spec = importlib.util.spec_from_file_location("plot_runs", os.path.join(ROOT, "dev", "plot", "runs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_step(number, selection="on", **more):
    return json.dumps({"step": number, "selection": selection, "loss": 3 - 0.1 * number, "ms": 500.0,
                       "tokens_per_second": 2000.0} | more) + "\n"


@test
def a_run_is_read_with_its_stages():
    make_shards()
    train(out="run", steps=12, val_data="shards/text_val_*.bin", val_every=4, selection="on", levels=2, pool=2, topk=8,
          topk_tile=4, dense_layers="0", dense_every=4)
    resume(out="run", selection="off", steps=16)
    run = load_runs().read_run("run")
    # The twelfth step is dense, and no step with selection is after it: the tail has begun.
    check_equal("stage 1", run.stages(), [(1, 11)])
    check_equal("dense steps", run.dense_steps(), [4, 8])
    check_equal("validations", [step for step, _ in run.column("dense_loss")], [4, 8, 12, 16])
    tokens = run.steps[-1]["samples"] * 40
    check(abs(run.steps[-1]["tokens"] / tokens - 1) < 1e-3, f"tokens: {run.steps[-1]['tokens']}, not {tokens}")


@test
def losses_by_validation_are_read_whichever_there_are():
    lines = [a_step(1, val_loss_dense=2.5), a_step(2, val_loss=2, val_loss_dense=2.25), a_step(3, "off", val_loss=1.5),
             a_step(4, val_loss=1)]
    write_file("metrics.jsonl", "".join(lines).encode())
    check_equal("dense losses", load_runs().read_run("metrics.jsonl").column("dense_loss"), [(1, 2.5), (2, 2.25), (3, 1.5)])


@test
def what_is_no_run_is_refused():
    write_file("empty/metrics.jsonl", b"")
    write_file("other/metrics.jsonl", b"[1]\n")
    write_file("run/metrics.jsonl", a_step(1).encode())
    for words, *arguments in (("missing", "missing"), ("no step yet", "empty"), ("line 1", "other"),
                              (".html", "run", "--out", "a.gif"), ("--smooth", "run", "--smooth", "0")):
        done = subprocess.run(dev_script("plot/plot.py", *arguments), capture_output=True, text=True)
        check_equal(f"exit code; {done.stderr}", done.returncode, 2)
        check(words in done.stderr and "Traceback" not in done.stderr, f"{words} expected: {done.stderr}")
    check_equal("files", sorted(os.listdir()), ["empty", "other", "run"])


@test
def curves_become_a_picture_and_a_page():
    for name in ("one", "two"):
        write_file(f"{name}/metrics.jsonl", "".join(a_step(n, "off" if n > 6 else "on") for n in range(1, 10)).encode())
    for out, start in (("c.png", b"\x89PNG"), ("c.html", b"<!doctype html>")):
        done = subprocess.run(dev_script("plot/plot.py", "one", "two", "--out", out), capture_output=True, text=True)
        if "setup.sh --plot" in done.stderr:  # matplotlib is not here
            check_equal("exit code", done.returncode, 1)
        else:
            check_equal(f"exit code; {done.stderr}", done.returncode, 0)
            check(read_file(out).startswith(start), f"{out} starts otherwise")


@test
def a_mirror_follows_a_run_and_its_resumption():
    follower = load_runs().Follower("metrics.jsonl")

    def look(text):
        write_file("metrics.jsonl", text.encode())
        return [(step["step"], step["loss"]) for step in follower.look()]

    first, second, third = a_step(1, loss=3), a_step(2, loss=2), a_step(3, loss=1)
    check_equal("at the start", look(first), [(1, 3)])
    check_equal("a line that is being written", look(first + second[:9]), [])
    check_equal("what was added", look(first + second + third), [(2, 2), (3, 1)])
    # Resumed from step 1: what comes after it is made again, to a file as long as before, or longer.
    again = a_step(2, loss=7)
    check_equal("made again", look(first + again + third), [(2, 7), (3, 1)])
    check_equal("made again and gone on", look(first + second + third + a_step(4, loss=0)),
                [(2, 2), (3, 1), (4, 0)])
    check_equal("cut", look(first), [])
    check_equal("nothing new", look(first), [])
