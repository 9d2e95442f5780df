"""Runs that are asked to stop."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time

from .harness import (
    DEVICE, PROGRAM, ROOT, SHAPE, Running, check, check_equal, check_same_checkpoint, checkpoint, command_line, failing_disk,
    finish, make_shards, read_directory, read_file, read_metrics, read_trainer, script, steps_kept, test, to_flags, train,
    wait_until, write_file, write_shard,
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
def a_later_signal_ends_a_run_at_once():
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_shards()
    # The check of the only shard and twenty steps read without trouble, the next step hangs.
    command = command_line(train_data="shards/text_train_000000.bin", steps=100, save_every=2)
    with Running(command, failing_disk("hang", 43, below="shards")) as run:
        wait_until(lambda: os.path.exists("hanging") and os.path.exists("out/latest"), "the step that hangs")
        run.send(signal.SIGTERM)
        time.sleep(6)
        check_equal("it still runs", run.process.poll(), None)
        run.send(signal.SIGINT)
        check_equal("exit code", run.wait(), 128 + signal.SIGINT)
    newest = os.path.join("out", read_file("out/latest").decode().strip())
    finish([PROGRAM, "--verify-checkpoint", newest])


STOPS = [signal.Signals(number) for number in (
    signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGXFSZ,
    signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGPOLL, signal.SIGPWR)]


def start_with(ignored=(), blocked=()):
    """What a process that starts the command has left ignored and blocked."""
    def prepare():
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    return prepare


@test
def every_signal_that_announces_the_end_asks_to_stop():
    make_shards()
    held = set(STOPS) - {signal.SIGHUP}
    for number in STOPS:
        for prepare in (start_with(), start_with(ignored=held), start_with(blocked=STOPS)):
            shutil.rmtree("out", ignore_errors=True)
            with Running(command_line(steps=100000), prepare=prepare) as run:
                wait_for_step(2)
                run.send(number)
                code = run.wait()
                check_equal(f"exit code after {number.name}; {run.said()[1]}", code, 75)
                name = "SIGPOLL" if number == signal.SIGPOLL else number.name
                check(f"stopped by {name} after step " in run.said()[0], run.said()[0][-500:])
            check(os.path.exists("out/latest"), "there is no checkpoint")


@test
def a_hangup_that_was_ignored_and_a_reader_that_is_gone_stop_nothing():
    make_shards()
    with Running(command_line(steps=100000), prepare=start_with(ignored=[signal.SIGHUP])) as run:
        wait_for_step(2)
        for number in (signal.SIGHUP, signal.SIGPIPE):
            run.send(number)
        wait_for_step(read_file("out/metrics.jsonl").count(b"\n") + 3)
        run.send(signal.SIGTERM)
        check_equal("exit code", run.wait(), 75)
        check("stopped by SIGTERM" in run.said()[0], run.said()[0])
    # As in `train_lighthouse … | head -1`, and with a launcher.
    make_noise()
    options = to_flags({**SHAPE, **PARALLEL, "steps": 60})
    for command in (command_line(steps=60), script("launch/mpirun_one_node.sh", "-n", "2", *options, "--cp", "2")):
        shutil.rmtree("out")
        run = subprocess.Popen([*command, "--out", "out"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        run.stdout.readline()
        run.stdout.close()
        check_equal("exit code", run.wait(), 0)
        check_equal("last step", read_metrics()[-1]["step"], 60)


@test
def a_file_that_may_not_grow_does_not_end_a_run():
    make_shards()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    done = subprocess.run(command_line(steps=6), preexec_fn=limit, capture_output=True, text=True)
    check("step 6/6" in done.stdout, f"it did not train to its end: {done.stderr}")
    check_equal(f"exit code, since the checkpoint is missing; {done.stderr}", done.returncode, 1)


@test
def a_stop_before_the_first_step_is_at_once():
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_shards()
    train(steps=2, out="good")
    before = read_directory(checkpoint(2, "good"))
    resumed = [PROGRAM, "--device", DEVICE, "--resume", "good/step_00000002", "--steps", "4", "--out", "good"]
    for below, command in (("shards", command_line()), ("good", resumed)):
        for call in (1, 3, 7) if below == "good" else (1, 2):
            if os.path.exists("hanging"):
                os.remove("hanging")
            with Running(command, failing_disk("hang", call, below=below)) as run:
                wait_until(lambda: os.path.exists("hanging"), f"read {call} below {below}")
                run.send(signal.SIGUSR1)
                check_equal("exit code", run.wait(), 75)
                check("stopped by SIGUSR1 before the first step" in run.said()[0], run.said()[0])
    check_equal("the checkpoint is untouched", read_directory(checkpoint(2, "good")) == before, True)


@test
def processes_that_do_not_train_yet_stop_at_once():
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_noise()
    environment = failing_disk("hang", 1, below="noise_train.bin") | {"FAIL_IO_RANK": "1"}
    with Running(mpirun(2, command_line(**PARALLEL, cp=2)), environment) as run:
        wait_until(lambda: os.path.exists("hanging"), "the first read")
        run.send(signal.SIGUSR1)
        check_equal("exit code", run.wait(), 75)
        check("MPI_ABORT" not in run.said()[1], run.said()[1])


@test
def a_stop_breaks_off_a_validation():
    make_noise()
    write_shard("long.bin", random.Random(3).choices(range(256), k=1200000))
    options = {"val_data": "long.bin", "val_every": 2, "val_batches": 100000, "steps": 100}
    for command, victim in ((command_line(**PARALLEL | options), None),
                            (mpirun(2, command_line(**PARALLEL | options)), 1)):
        shutil.rmtree("out", ignore_errors=True)
        with Running(command) as run:
            wait_for_step(1)
            os.kill(run.process.pid if victim is None else process_of_rank(run.process.pid, victim), signal.SIGTERM)
            code = run.wait()
            check_equal(f"exit code; {run.said()[1]}", code, 75)
            check("MPI_ABORT" not in run.said()[1], run.said()[1])
        check("val_loss" not in read_metrics()[-1], "it validated to the end")
        check_equal("checkpoint", steps_kept(), [read_metrics()[-1]["step"]])


@test
def requests_within_five_seconds_are_one():
    make_shards()
    options = {"steps": 100000, "seq_len": 2048, "train_data": "noise.bin"}  # long steps
    write_shard("noise.bin", random.Random(1).choices(range(256), k=60000))
    with Running(["timeout", "--preserve-status", "2", *command_line(**options)]) as run:
        code = run.wait()
        check_equal(f"exit code; {run.said()[1]}", code, 75)
    check(os.path.exists("out/latest"), "there is no checkpoint")
    shutil.rmtree("out")
    with Running(command_line(**options)) as run:
        wait_for_step(1)
        for number in STOPS + STOPS:
            run.send(number)
        check_equal("exit code", run.wait(), 75)
    check(os.path.exists("out/latest"), "there is no checkpoint")


@test
def a_step_that_hangs_ends_at_its_deadline():
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_shards()
    command = command_line(train_data="shards/text_train_000000.bin", step_timeout=2)
    done = subprocess.run(command, env=failing_disk("hang", 3, below="shards"), capture_output=True, text=True)
    check_equal(f"exit code; {done.stderr}", done.returncode, 1)
    lines = done.stderr.splitlines()
    check(len(lines) == 1 and lines[0].startswith("error: stuck: step 1 ") and "--step-timeout 2" in lines[0], done.stderr)


@test
def time_in_which_processes_do_not_run_is_no_wait():
    make_noise()
    command = mpirun(2, command_line(**PARALLEL, cp=2, steps=100000, collective_timeout=2, step_timeout=2))
    with Running(command) as run:
        wait_for_step(2)
        ranks = [process_of_rank(run.process.pid, rank) for rank in range(2)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in ranks:
                os.kill(rank, number)
            if number == signal.SIGSTOP:
                time.sleep(5)
        done = read_file("out/metrics.jsonl").count(b"\n")
        wait_for_step(done + 100)
        run.send(signal.SIGUSR1)
        check_equal(f"exit code; {run.said()[1]}", run.wait(), 75)


@test
def a_process_that_loads_slowly_is_not_stuck():
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_noise()
    options = {"cp": 2, "collective_timeout": 2}
    train_together(2, steps=2, **options)
    command = mpirun(2, [PROGRAM, "--device", "cpu", "--resume", "latest", "--steps", "4"])
    for rank in "01":
        environment = failing_disk("slow", 1) | {"FAIL_IO_RANK": rank}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        check_equal(f"exit code; {done.stderr}", done.returncode, 0)
        shutil.rmtree(checkpoint(4))
        write_file("out/latest", b"step_00000002\n")
