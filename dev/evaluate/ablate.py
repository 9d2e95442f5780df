#!/usr/bin/env python3
"""Runs the variants of a recipe on your data, side by side on all GPUs, and compares them in a table and a picture.

    dev/evaluate/ablate.py TABLE --out DIR     runs what is not done yet, then reports
    dev/evaluate/ablate.py report DIR          reports what is there so far

TABLE is a text file: options that all runs share, then a line a variant. For example

    common:    --model 85M --seq-len 32768 --global-batch 4 --lr 1e-3 --warmup-steps 300
               --train-data data/text_train_*.bin --val-data data/text_val_*.bin --val-every 250
               --stage1-steps 5000 --steps 6000 --seeds 1,2,3
    dense:     --selection off
    ends:      --dense-layers 0,11
    one:       --dense-layers 5 --dense-every 16
    shorter:   --dense-layers 5 --dense-every 16 --stage1-steps 5500   # a tail of 500
    decayed:   --dense-layers 5 --dense-every 16 | --lr-schedule wsd --decay-frac 0.1667

Options are those of train_lighthouse, and a variant's go over the common ones. --stage1-steps of the --steps are made with
the options as they stand; the rest, the tail, with --selection off and what is behind a |. A variant with --selection off
is dense from the first step to the last. Every number in --seeds (1 if there is none) is a run. Others are compared with
the variant of the first line. An indented line goes on with the one before; # begins a comment. A stage is told its own end
as --steps: a learning rate that is to fall in the tail is given behind the |, one before it falls to the end of stage 1.

A run is in DIR/VARIANT/seed_N with its checkpoints, metrics and log.txt. Started again, what is done is skipped and what was
cut off goes on. A run that fails does not stop the others. Ctrl-C or SIGTERM asks all to save and ends with exit code 75;
one more than five seconds later ends them at once. Variants that differ in the tail or the length of stage 1 alone share
stage 1: the checkpoint at its end is linked into the directory of the other, which goes on from there.

The report is report.md, report.png (with matplotlib, which scripts/setup.sh --plot installs) and CSV files in DIR; `report`
also takes a points.csv in place of DIR.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from ablate_report import add_report_options, read_curve, read_points, report
from ablate_table import AblationError, ArgumentParser, check_unchanged, read_table

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.append(os.path.join(ROOT, ".deps", "plot"))  # matplotlib, if scripts/setup.sh --plot installed it
STOPPED = 75  # train_lighthouse's exit code after a request to stop
ONE_REQUEST_SECONDS = 5  # within them of the first, requests are one
LOG_LINES = 5  # of a run that failed, shown


def say(text):
    print(time.strftime("%H:%M:%S"), text, flush=True)


def to_flags(options):
    return [word for name, value in options.items() for word in ("--" + name, value)]


# --- where runs go ----------------------------------------------------------------------------------------------------


def find_gpus(text):
    """Names of GPUs for CUDA_VISIBLE_DEVICES: those of --gpus, else those this process may use; none: the CPU."""
    if text == "none":
        return []
    if text is None:
        text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is not None:
        return [gpu for gpu in text.split(",") if gpu]
    try:
        listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def environment_of(gpu, jobs):
    """GPU None: the CPU. The host's cores are shared out among the jobs."""
    cores = len(os.sched_getaffinity(0))
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), "OMP_WAIT_POLICY": "passive"} | os.environ
    return environment if gpu is None else environment | {"CUDA_VISIBLE_DEVICES": gpu}


# --- stage 1, shared --------------------------------------------------------------------------------------------------


def find_parents(runs):
    """For each run by its directory, the one whose stage 1 its own goes on from: the next shorter one, or none (absent)."""
    families, parents = {}, {}
    for run in sorted(runs, key=lambda run: run.stage1_steps):
        if run.stage1_steps > 0:
            family = families.setdefault(run.stage1_key(), [])
            if family:
                parents[run.directory] = family[-1]
            family.append(run)
    return parents


def fork(parent, child):
    """Gives the child, if it has no checkpoint yet, the one that ends the parent's stage 1, and the metrics up to there."""
    step = parent.stage1_steps
    source, target = parent.checkpoint(step), child.checkpoint(step)
    if child.newest_step() > 0 or parent.newest_step() < step or not os.path.isdir(source):
        return
    shutil.rmtree(target, ignore_errors=True)
    # A finished checkpoint's files are never written to again, so the same ones can stand in both directories.
    shutil.copytree(source, target, copy_function=os.link)
    with open(os.path.join(parent.directory, "metrics.jsonl")) as file:
        lines = [line for line in file if json.loads(line)["step"] <= step]
    with open(os.path.join(child.directory, "metrics.jsonl"), "w") as file:
        file.writelines(lines)
    with open(os.path.join(child.directory, "latest"), "w") as file:
        file.write(os.path.basename(target) + "\n")
    say(f"{child}: has the first {step} steps of {parent}")


# --- running ----------------------------------------------------------------------------------------------------------


class Child:
    """A stage of a run that is under way."""

    def __init__(self, run, step, gpu, command, environment, lock):
        self.run, self.step, self.gpu, self.start = run, step, gpu, time.monotonic()
        self.log = os.path.join(run.directory, "log.txt")
        with open(self.log, "a") as log:
            print("$", shlex.join(command), file=log, flush=True)
            # In a session of its own: Ctrl-C reaches this process alone, which passes it on.
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                            start_new_session=True, pass_fds=(lock,))

    def last_lines(self):
        with open(self.log, errors="replace") as log:
            return [line.rstrip() for line in log][-LOG_LINES:]


class Ablation:
    """All runs of a table. `gpus` has an entry for each run that goes on at a time."""

    def __init__(self, runs, gpus, program, lock):
        self.gpus, self.program, self.lock = list(gpus), program, lock
        self.jobs = len(gpus)
        self.runs, self.parents = runs, find_parents(runs)
        self.waiting = [run for run in runs if run.newest_step() < run.steps]
        self.children, self.failed, self.stopped = [], [], []
        self.requests = self.passed_on = 0  # to stop
        self.first_request = 0.0  # when it came

    def check(self):
        """Has the program look at each variant's options, before hours are spent on others."""
        seen = set()
        for run in self.waiting:
            for name, options, steps in run.stages() if run.variant not in seen else ():
                command = [*self.program, *to_flags(options), "--seed", run.seed, "--steps", str(steps), "--plan"]
                done = subprocess.run(command, capture_output=True, text=True, env=environment_of(self.gpus[0], self.jobs))
                if done.returncode != 0:
                    why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
                    raise AblationError(f"{run.variant}, {name}: {why[0].removeprefix('error: ')}")
            seen.add(run.variant)

    def ready(self, run):
        """Whether it need not wait for the stage 1 that it goes on from."""
        parent = self.parents.get(run.directory)
        begun = self.waiting + [child.run for child in self.children]
        return parent is None or run.newest_step() > 0 or parent.newest_step() >= parent.stage1_steps or parent not in begun

    def start(self, run, gpu):
        """Begins the next stage of the run, or goes on with it."""
        for child in self.runs:
            if self.parents.get(child.directory) is run:
                fork(run, child)
        parent = self.parents.get(run.directory)
        if parent:
            fork(parent, run)
        step = run.newest_step()
        name, options, end = next(stage for stage in run.stages() if step < stage[2])
        command = [*self.program, *to_flags(options), "--seed", run.seed, "--steps", str(end), "--out", run.directory]
        if step > 0:
            # Should the checkpoint that ends stage 1 be damaged, stage 1 is not cut short by going back to an older one.
            command += ["--resume", run.checkpoint(step) if step == run.stage1_steps else "latest"]
        child = Child(run, step, gpu, command, environment_of(gpu, self.jobs), self.lock)
        self.children.append(child)
        where = "on the CPU" if gpu is None else f"on GPU {gpu}"
        say(f"{run}: {name}, steps {step} to {end}, {where}; {child.log}")

    def start_waiting(self):
        while self.gpus and self.requests == 0:
            run = next((run for run in self.waiting if self.ready(run)), None)
            if run is None:
                return
            self.waiting.remove(run)
            self.start(run, self.gpus.pop(0))

    def end(self, child, code):
        """What follows when a stage has ended with this exit code."""
        run, step = child.run, child.run.newest_step()
        self.children.remove(child)
        took = f"{(time.monotonic() - child.start) / 60:.1f} minutes"
        if code == 0 and child.step < step < run.steps and self.requests == 0:
            return self.start(run, child.gpu)
        self.gpus.insert(0, child.gpu)
        if code == 0 and step >= run.steps:
            say(f"{run}: done; the last stage took {took}")
        elif self.requests > 0 or code == STOPPED:
            self.stopped.append(run)
            say(f"{run}: stopped after step {step}")
        else:
            self.failed.append(run)
            say(f"{run}: failed, exit code {code} after {took}; {child.log} ends with")
            print("\n".join("    " + line for line in child.last_lines()), flush=True)

    def pass_on(self):
        """Asks the runs to stop, as often as this process was asked. mpirun passes SIGUSR1 on to its processes."""
        if self.passed_on < self.requests:
            self.passed_on += 1
            say("stopping: the runs save their state" if self.passed_on == 1 else "stopping at once")
            for child in self.children:
                child.process.send_signal(signal.SIGUSR1)

    def request_stop(self, number, frame):
        # Like train_lighthouse: several signals at once are one request.
        if self.requests == 0:
            self.first_request = time.monotonic()
        if self.requests == 0 or time.monotonic() - self.first_request > ONE_REQUEST_SECONDS:
            self.requests += 1

    def work(self):
        """Until all runs are done, failed or stopped."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self.request_stop)
        self.start_waiting()
        while self.children:
            self.pass_on()
            for child in list(self.children):
                code = child.process.poll()
                if code is not None:
                    self.end(child, code)
            self.start_waiting()
            time.sleep(0.05)


def take_lock(out):
    """A lock that this process and the runs it starts hold until the last of them has ended."""
    lock = os.open(os.path.join(out, "lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AblationError(f"--out {out} is in use: another ablate.py, or runs that it started, still work there") from None
    return lock


def ablate(arguments):
    """The exit code."""
    os.makedirs(arguments.out, exist_ok=True)
    lock = take_lock(arguments.out)
    runs = read_table(arguments.table, arguments.out)
    gpus = find_gpus(arguments.gpus) or [None]
    jobs = arguments.jobs or len(gpus)
    ablation = Ablation(runs, [gpus[i % len(gpus)] for i in range(jobs)], shlex.split(arguments.program), lock)
    ablation.check()
    for run in runs:
        check_unchanged(run)
    # For `report`, which is given the directory alone.
    if os.path.realpath(arguments.table) != os.path.realpath(table_of(arguments.out)):
        shutil.copyfile(arguments.table, table_of(arguments.out))
    say(f"{len(runs)} runs, {len(runs) - len(ablation.waiting)} of them done; {jobs} at a time")
    ablation.work()
    if ablation.requests > 0:
        say("stopped; the same command goes on")
        return STOPPED
    report_directory(arguments)
    unfinished = [*ablation.failed, *ablation.stopped]
    if unfinished:
        print(f"error: not done: {', '.join(map(str, unfinished))}; the same command tries again", file=sys.stderr)
    return 1 if unfinished else 0


# --- the command line -------------------------------------------------------------------------------------------------


def table_of(out):
    return os.path.join(out, "table.txt")


def report_directory(arguments):
    """Reports the runs of a directory, or the validations of them that an earlier report wrote."""
    if arguments.out.endswith(".csv"):
        return report(read_points(arguments.out), arguments)
    if not os.path.exists(table_of(arguments.out)):
        raise AblationError(f"{arguments.out} holds no runs of ablate.py: {table_of(arguments.out)} is missing")
    report([read_curve(run) for run in read_table(table_of(arguments.out), arguments.out)], arguments)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def parse_arguments(words):
    reports = words[:1] == ["report"]
    parser = ArgumentParser(prog="ablate.py report" if reports else "ablate.py", description=__doc__.split("\n")[0])
    if reports:
        parser.add_argument("out", metavar="DIR", help="--out of the runs; or a points.csv that an earlier report wrote")
    else:
        parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
        parser.add_argument("table", metavar="TABLE", help="text file of the runs")
        parser.add_argument("--out", metavar="DIR", required=True, help="where runs and reports go")
        parser.add_argument("--gpus", metavar="LIST", help="as in 0,1; none: the CPU (default: all that are here)")
        parser.add_argument("--jobs", metavar="N", type=positive, help="runs at a time (default: one a GPU, one on the CPU)")
        parser.add_argument("--program", metavar="COMMAND", default=os.path.join(ROOT, "train_lighthouse"),
                            help="what takes the options (default: %(default)s)")
    add_report_options(parser)
    arguments = parser.parse_args(words[1:] if reports else words)
    arguments.reports = reports
    return arguments


def main():
    arguments = parse_arguments(sys.argv[1:])
    try:
        if arguments.reports:
            return report_directory(arguments)
        return ablate(arguments)
    except AblationError as error:
        return f"error: {error}"
    except OSError as error:
        return f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}"
    except KeyboardInterrupt:
        return "error: interrupted"


if __name__ == "__main__":
    sys.exit(main())
