"""Runs that are asked to stop."""

import os
import random
import shutil
import signal
import subprocess
import time

from .harness import (
    DEVICE, PROGRAM, Running, check, check_equal, check_same_checkpoint, checkpoint, command_line, finish,
    make_shards, read_directory, read_file, read_metrics, read_trainer, test, train, wait_until, write_shard,
)
from .processes import PARALLEL, make_noise, mpirun, process_of_rank, train_together


def wait_for_step(step, out="out"):
    """Until the metrics have it; what a launcher passes on of the output comes late."""
    path = os.path.join(out, "metrics.jsonl")
    wait_until(lambda: os.path.exists(path) and read_file(path).count(b"\n") >= step, f"step {step}")


def check_stops_and_goes_on(command, go_on, send, name, steps):
    """The run, asked to stop after its third step, ends with exit code 75; gone on with, it ends in the bytes of "whole"."""
    with Running(command) as run:
        wait_for_step(3)
        send(run)
        code = run.wait()
        said, errors = run.said()
        check_equal(f"exit code; {errors}", code, 75)
        check(f"stopped by {name} after step " in said, said)
    stopped = read_trainer(os.path.join("out", read_file("out/latest").decode().strip()))["step"]
    check(3 <= stopped < steps, f"it stopped after step {stopped}")
    finish(go_on)
    a, b = read_directory(checkpoint(steps, "whole")), read_directory(checkpoint(steps))
    check_equal("files", list(b), list(a))
    check_equal("different files", [name for name in a if a[name] != b[name]], [])
    check_equal("losses", [m["loss"] for m in read_metrics()], [m["loss"] for m in read_metrics("whole")])


@test
def a_run_that_is_asked_to_stop_goes_on_to_the_same_bytes():
    make_shards()
    options = {"steps": 300, "seq_len": 80, "save_every": 70}
    train(out="whole", **options)
    go_on = [PROGRAM, "--device", DEVICE, "--resume", "latest"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        shutil.rmtree("out", ignore_errors=True)
        check_stops_and_goes_on(command_line(**options), go_on, lambda run, number=number: run.send(number),
                                number.name, 300)
    shutil.rmtree("out")
    code = subprocess.run(command_line(time_limit=1e-4, **options), capture_output=True).returncode
    check_equal("exit code at the time limit", code, 75)
    finish(go_on)
    check_same_checkpoint(checkpoint(300, "whole"), checkpoint(300))


@test
def processes_of_which_one_is_asked_to_stop_go_on_to_the_same_bytes():
    make_noise()
    options = {"steps": 120, "save_every": 50, "cp": 2, "zero": 1}
    train_together(4, out="whole", **options)
    check_stops_and_goes_on(mpirun(4, command_line(**PARALLEL | options)),
                            mpirun(4, [PROGRAM, "--device", "cpu", "--resume", "latest"]),
                            lambda run: os.kill(process_of_rank(run.process.pid, 2), signal.SIGTERM), "SIGTERM", 120)


@test
def a_second_signal_ends_a_run_at_once():
    write_shard("noise.bin", random.Random(1).choices(range(256), k=60000))
    options = {"train_data": "noise.bin", "seq_len": 4096, "steps": 100, "save_every": 2}  # long steps
    with Running(command_line(**options)) as run:
        wait_for_step(3)
        wait_until(lambda: os.path.exists("out/latest"), "the first checkpoint")
        run.send(signal.SIGTERM)
        time.sleep(0.02)
        run.send(signal.SIGTERM)
        check_equal("exit code", run.wait(), 128 + signal.SIGTERM)
    newest = os.path.join("out", read_file("out/latest").decode().strip())
    finish([PROGRAM, "--verify-checkpoint", newest])
