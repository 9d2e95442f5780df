"""The script that runs and compares variants of a recipe."""

import csv
import os
import shutil
import signal

from .harness import (
    LIGHTHOUSE, PROGRAM, Running, check, check_equal, check_refused, check_same_state, checkpoint, command_line,
    dev_script, finish, make_shards, read_file, read_metrics, resume, test, wait_until, write_file, write_script,
)


def options(**changes):
    """A small run's, without what ablate.py says itself."""
    often = {"save_every": 20, "val_every": 20, "val_data": "shards/text_val_*.bin"}
    words = command_line(**LIGHTHOUSE | often | changes)[1:]
    pairs = dict(zip(words[0::2], words[1::2]))
    return " ".join(f"{name} {value}" for name, value in pairs.items() if name not in ("--out", "--selection", "--steps"))


def write_table(*variants, steps="--stage1-steps 120 --steps 160 --seeds 1,2", **changes):
    lines = ["# A comment", f"common: {options(**changes)}", f"    {steps} # more of it", *variants, ""]
    write_file("table", "\n".join(lines).encode())


def ablate(*arguments):
    return dev_script("evaluate/ablate.py", *arguments)


def read_csv(path):
    with open(path, newline="") as file:
        return {(row["variant"], row["seed"]): row for row in csv.DictReader(file)}


@test
def variants_are_run_cut_off_resumed_and_compared():
    make_shards()
    write_table("dense: --selection off", "one:", "short: --stage1-steps 140 | --lr 1e-3", lr=0.004)
    command = ablate("table", "--out", "runs")
    with Running(command) as run:
        wait_until(lambda: os.path.exists("runs/dense"), "the first run")
        check_refused(command, "--out runs", "in use")
        wait_until(lambda: os.path.exists("runs/one/seed_1/metrics.jsonl")
                   and read_file("runs/one/seed_1/metrics.jsonl").count(b"\n") >= 5, "a run with selection")
        run.send(signal.SIGINT)
        said = run.said
        check_equal(f"exit code; {said()}", run.wait(), 75)
        check("the same command goes on" in said()[0], said()[0])
    check_equal("runs that began", sorted(os.listdir("runs/one")), ["seed_1", "seed_2"])
    first = read_metrics("runs/one/seed_1")
    check(5 <= len(first) < 160, f"{len(first)} steps")
    said = finish(command).stdout
    check("6 runs, 1 of them done" in said, said)
    check(f"one seed 1: stage 1, steps {len(first)} to 120" in said or len(first) >= 120, said)
    check("short seed 2: has the first 120 steps of one seed 2" in said, said)

    # As a person would have run them.
    for name, stage1, tail in (("one", 120, {}), ("short", 140, {"lr": 1e-3})):
        finish([PROGRAM, *options(lr=0.004).split(), "--seed", "2", "--steps", str(stage1), "--out", name])
        resume(out=name, selection="off", steps=160, **tail)
        check_same_state(checkpoint(160, f"runs/{name}/seed_2"), checkpoint(160, name))
        check_equal("losses", [[line["step"], line["loss"]] for line in read_metrics(f"runs/{name}/seed_2")],
                    [[line["step"], line["loss"]] for line in read_metrics(name)])
    check_report(read_csv("runs/report_table.csv"), said)
    # Once more there is nothing to do, and what validations gave is enough for the table.
    check("6 runs, 6 of them done" in finish(command).stdout, "not all are done")
    finish(ablate("report", "runs/report_points.csv", "--report", "again", "--variants", "one", "dense"))
    means = [float(read_csv(path)["one", "mean"]["loss_dense"]) for path in ("again_table.csv", "runs/report_table.csv")]
    check(abs(means[0] - means[1]) < 1e-4, means)
    write_table("dense: --selection off", "one: --weight-decay 0.2", lr=0.004)
    check_refused(command, "one seed 1", "another name", "runs/one/seed_1")


def check_report(table, said):
    last = {seed: read_metrics(f"runs/one/seed_{seed}") for seed in "12"}
    for seed, lines in last.items():
        row = table["one", seed]
        check(abs(float(row["loss_dense"]) - lines[-1]["val_loss"]) < 1e-4, row)
        check(abs(float(row["stage1_loss_as_trained"]) - lines[119]["val_loss"]) < 1e-4, row)
        check(abs(float(row["stage1_loss_dense"]) - lines[119]["val_loss_dense"]) < 1e-4, row)
        check(abs(float(row["seconds"]) - sum(line["ms"] for line in lines) / 1e3) < 1e-3, row)
        check(row["spike"], row)
    mean = sum(lines[-1]["val_loss"] for lines in last.values()) / 2
    check(abs(float(table["one", "mean"]["loss_dense"]) - mean) < 1e-4, table["one", "mean"])
    difference = mean - sum(read_metrics(f"runs/dense/seed_{seed}")[-1]["val_loss"] for seed in "12") / 2
    check(abs(float(table["one", "mean"]["loss_over_baseline"]) - difference) < 1e-4, table["one", "mean"])
    check_equal("stage 1 of the dense runs", table["dense", "mean"]["stage1_seconds"], "")
    check("| one | 2 | " in said and f"{mean:.4f} ± " in said, said)
    check(os.path.exists("runs/report.png") or "no picture: scripts/setup.sh --plot installs matplotlib" in said, said)


FALLEN = """#!/bin/sh
case "$*" in
*--plan*) ;;
*runs/dense*) echo bus error >&2; exit 3;;
esac
exec {program} "$@"
"""


@test
def a_variant_that_fails_is_named_and_the_others_go_on():
    make_shards()
    write_table("dense: --selection off", "one:", steps="--stage1-steps 4 --steps 6")
    # As if the dense one's GPU had fallen off the bus, once its options were found good.
    write_script("program", FALLEN.format(program=PROGRAM))
    command = ablate("table", "--out", "runs", "--program", "./program", "--jobs", "2", "--gpus", "none")
    check_refused(command, "dense seed 1")
    with Running(command) as run:
        check_equal("exit code", run.wait(), 1)
        said = run.said()[0]
    check("dense seed 1: failed, exit code 3" in said and "    bus error" in said, said)
    check("Not finished, and not in the table: dense seed 1 (step 0 of 6)" in said, said)
    check_equal("last step", read_metrics("runs/one/seed_1")[-1]["step"], 6)
    finish(ablate("table", "--out", "runs"))
    check_equal("last step", read_metrics("runs/dense/seed_1")[-1]["step"], 6)


@test
def bad_tables_are_refused():
    make_shards()
    for variants, words in ((["one: --layers"], ["line 4", "--layers"]), (["one --layers 2"], ["line 4", "NAME:"]),
                            (["one: --out x"], ["--out"]), (["one:", "one:"], ["line 5", "one"]), ([], ["no variant"]),
                            (["one: --seeds 1,x"], ["--seeds 1,x"]), (["one: --stage1-steps 190"], ["190", "--steps 160"]),
                            (["one:", "two: --no-such 1"], ["two", "--no-such"]),
                            (["one: | --levels 1"], ["one, the tail", "--levels"])):
        write_table(*variants)
        check_refused(ablate("table", "--out", "runs"), *words)
        check(not os.path.exists("runs/one"), "a run began")
    shutil.rmtree("runs")
    check_refused(ablate("report", "runs"), "runs")
    check_refused(ablate("nothing", "--out", "runs"), "nothing")
