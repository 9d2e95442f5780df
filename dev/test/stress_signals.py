#!/usr/bin/env python3
"""Asks runs to stop at random moments, by every signal and under every launcher, and checks that nothing is lost.

    dev/test/stress_signals.py [--portion I/N] [--seed S] [--moments M] [WORD…]

A run starts, half of them from a checkpoint; it checks data, loads, trains, validates, saves and ends. At a random moment
it is sent a signal. How it may end:

    saved     exit code 75, and its newest checkpoint has the last step that was made
    early     exit code 75 before the first step, and what it found is untouched
    done      exit code 0: its last step was made already
    unheard   it died of the signal before it could listen, in the first milliseconds of a process; it had done nothing

Gone on with to the end, each has the bytes of an undisturbed run. Of N portions only the I-th is run; a case's moment does
not depend on that. WORDs choose cases by their names. The last line is "N passed, N failed".
"""

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import tempfile
import time

from end_to_end.harness import (
    PROGRAM, SHAPE, Failure, Running, check, check_equal, finish, read_directory, read_file, read_metrics, script, to_flags,
    write_shard,
)
from end_to_end.processes import PARALLEL, make_noise

HEARD = ("HUP", "INT", "TERM", "USR1", "USR2", "XCPU", "XFSZ", "ALRM", "VTALRM", "PROF", "POLL", "PWR")
LAUNCHED = ("TERM", "INT", "HUP", "USR1")
STEPS, BEGUN = 120, 40  # of a run; of the checkpoint that half of them go on from
OPTIONS = to_flags({**SHAPE, **PARALLEL, "steps": STEPS, "warmup_steps": 3, "save_every": 10, "val_every": 10,
                    "val_data": "noise_val.bin", "deterministic": "on"})
LAUNCHERS = {
    "alone": [PROGRAM, *OPTIONS],
    "mpirun": script("launch/mpirun_one_node.sh", "-n", "2", *OPTIONS, "--cp", "2"),
    "resilient": script("launch/run_resilient.sh", "--wait", "0", "--out", "out",
                        *script("launch/mpirun_one_node.sh", "-n", "2"), *OPTIONS, "--cp", "2"),
}


def command_of(launcher, out="out"):
    if launcher == "resilient":  # finds out for itself whether it resumes
        return [out if word == "out" else word for word in LAUNCHERS[launcher]]
    place = ["--out", out, *(["--resume", "latest"] if os.path.exists(f"{out}/latest") else [])]
    return [*LAUNCHERS[launcher], *place]


def newest(out="out"):
    return read_file(f"{out}/latest").decode().strip() if os.path.exists(f"{out}/latest") else None


# --- undisturbed runs -------------------------------------------------------------------------------------------------


class Whole:
    """What an undisturbed run of a launcher gives, and how long its parts take."""

    def __init__(self, launcher):
        self.out, self.begun = f"whole_{launcher}", f"begun_{launcher}"
        finish([*command_of(launcher, self.begun), "--steps", str(BEGUN)])
        start = time.monotonic()
        with Running(command_of(launcher, self.out)) as run:
            while not os.path.exists(f"{self.out}/metrics.jsonl") and run.process.poll() is None:
                time.sleep(0.005)
            self.first_step = time.monotonic() - start
            check_equal(f"exit code; {run.said()[1]}", run.wait(600), 0)
        self.seconds = time.monotonic() - start
        self.files = read_directory(f"{self.out}/step_{STEPS:08d}")
        self.losses = [entry["loss"] for entry in read_metrics(self.out)]


# --- a case -----------------------------------------------------------------------------------------------------------


def prepare(whole, resumes):
    shutil.rmtree("out", ignore_errors=True)
    if resumes:
        shutil.copytree(whole.begun, "out")


def outcome_of(number, code, said, found):
    """How the run ended: a word of the table above. `found`: its newest checkpoint before."""
    # A shell reports 128 + the signal's number.
    if code in (-number, 128 + number) and "step " not in said and newest() == found:
        return "unheard"
    if number == signal.SIGPIPE:
        check_equal("exit code", code, 0)
        return "done"
    check(code in (0, 75), f"exit code {code}")
    if code == 0:
        return "done"
    steps = [entry["step"] for entry in read_metrics()] if os.path.exists("out/metrics.jsonl") else []
    if newest() == found:
        check_equal("steps that were made and are lost", [s for s in steps if s > (BEGUN if found else 0)], [])
        return "early"
    check_equal("the newest checkpoint", newest(), f"step_{steps[-1]:08d}")
    return "saved"


def check_goes_on(launcher, whole):
    finish(command_of(launcher))
    files = read_directory(f"out/step_{STEPS:08d}")
    check_equal("different files", [name for name in files if files[name] != whole.files.get(name)], [])
    check_equal("losses", [entry["loss"] for entry in read_metrics()], whole.losses)


def run_case(launcher, name, whole, chooser):
    number = signal.Signals[f"SIG{name}"]
    resumes, starting = chooser.random() < 0.5, chooser.random() < 0.5
    moment = chooser.uniform(whole.first_step, 1.05 * whole.seconds)
    if starting:  # rather earlier than later: the undisturbed run may have started more slowly
        moment = whole.first_step * chooser.random() ** 2
    prepare(whole, resumes)
    found = newest()
    with Running(command_of(launcher)) as run:
        time.sleep(moment)
        run.send(number)
        code = run.wait(120)
        said = run.said()
    try:
        outcome = outcome_of(number, code, said[0], found)
        check("MPI_ABORT" not in said[1], "MPI_ABORT")
        check_goes_on(launcher, whole)
    except Failure as failure:
        raise Failure(f"{launcher}, {number.name} after {moment:.3f} s{', resuming' if resumes else ''}: {failure}\n"
                      f"{said[0][-300:]}\n{said[1][-600:]}") from None
    return outcome


# --- all of them ------------------------------------------------------------------------------------------------------


def all_cases(moments):
    cases = [("alone", name) for name in HEARD] * moments + [("alone", "PIPE")] * min(moments, 5)
    return cases + [(launcher, name) for launcher in ("mpirun", "resilient") for name in LAUNCHED] * moments


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portion", default="1/1", metavar="I/N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--moments", type=int, default=20, metavar="M", help="of each signal under each launcher (20)")
    parser.add_argument("words", nargs="*", metavar="WORD")
    arguments = parser.parse_args()
    portion, portions = map(int, arguments.portion.split("/"))
    cases = list(enumerate(all_cases(arguments.moments)))[portion - 1::portions]
    cases = [(i, case) for i, case in cases if not arguments.words or any(w in case for w in arguments.words)]
    wholes, table, failed = {}, collections.defaultdict(collections.Counter), 0
    with tempfile.TemporaryDirectory(prefix="stress_signals.") as directory:
        os.chdir(directory)
        make_noise()
        write_shard("noise_val.bin", random.Random(9).choices(range(256), k=8000))
        for i, (launcher, name) in cases:
            if launcher not in wholes:
                wholes[launcher] = Whole(launcher)
            try:
                outcome = run_case(launcher, name, wholes[launcher], random.Random(f"{arguments.seed} {i}"))
            except Failure as failure:
                outcome = "FAILED"
                failed += 1
                print(f"FAIL case {i}: {failure}", flush=True)
            table[launcher, name][outcome] += 1
        os.chdir("/")
    for (launcher, name), counts in sorted(table.items()):
        print(f"{launcher:10} {name:7}", ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
