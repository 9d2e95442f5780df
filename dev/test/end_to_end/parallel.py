"""Runs of several processes."""

import os
import shutil
import signal
import subprocess

from .harness import (
    PROGRAM, ROOT, Running, as_tokens, check, check_equal, checkpoint, command_line, failing_disk, finish, make_text,
    read_file, read_metrics, read_trainer, resume, test, train, wait_until, write_script, write_shard,
)
from .processes import (
    PARALLEL, check_close_losses, check_refused_together, make_noise, mpirun, process_of_rank, resume_together,
    train_together,
)


@test
def several_processes_train_as_one():
    make_noise()
    options = {"steps": 5, "val_data": "noise_val.bin", "val_every": 2}
    train(out="one", **PARALLEL | options)
    for out, processes, parallel in (("two", 2, {"cp": 2}), ("four", 4, {"cp": 2, "zero": 1}), ("data", 4, {"zero": 1})):
        said = train_together(processes, out=out, **options | parallel).stdout
        check_close_losses(out, "one")
        lines = [line.split()[0] for line in said.splitlines() if line.startswith(("step ", "done: "))]
        check_equal("lines", lines, ["step"] * 5 + ["done:"])


@test
def a_run_goes_on_with_other_numbers_of_processes():
    make_noise()
    train(steps=4, out="one", **PARALLEL)
    resume(out="one", selection="off", steps=8, device="cpu")
    train_together(4, steps=2, cp=2, zero=1)
    resume_together(2, out="out", steps=4)
    resume_together(4, out="out", steps=6, selection="off", zero=0)
    resume(out="out", steps=8, cp=1, device="cpu")
    check_close_losses("out", "one")
    check_equal("stages", [entry["selection"] for entry in read_metrics()], ["on"] * 4 + ["off"] * 4)


@test
def what_does_not_fit_the_processes_is_refused_once():
    make_noise()
    for processes, options, words in (
            (4, {"cp": 3}, ["--cp 3", "4 processes", "1, 2"]),
            (2, {"cp": 2, "topk": 8}, ["--cp 2", "--topk 8", "may be 1"]),
            (4, {"cp": 2, "global_batch": 3}, ["--global-batch 3", "2 and 4 are"]),
            (2, {"steps": "ten"}, ["--steps", "ten"]),
            (2, {"resume": "nowhere"}, ["--resume", "nowhere"])):
        check_refused_together(processes, command_line(**PARALLEL | options), "rank 0", *words)
        check(not os.path.exists("out"), f"{options}: the output directory was made")


@test
def data_that_one_process_cannot_read_is_refused_in_its_name():
    make_noise()
    write_shard("bad.bin", as_tokens(make_text(20))[:500], count=600)
    write_script("start", f"""#!/bin/sh
if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then set -- "$@" --train-data bad.bin; fi
exec '{PROGRAM}' "$@"
""")
    check_refused_together(4, ["./start", *command_line(**PARALLEL)[1:]], "rank 1", "bad.bin", "600")


@test
def a_run_that_loses_a_process_ends_and_can_be_resumed():
    make_noise()
    command = mpirun(4, command_line(**PARALLEL, cp=2, zero=1, steps=100000, save_every=3))
    with Running(command) as run:
        wait_until(lambda: os.path.exists("out/latest"), "the first checkpoint")
        os.kill(process_of_rank(run.process.pid, 2), signal.SIGKILL)
        code = run.wait()
        check(code not in (0, 75), f"exit code {code}")
    newest = os.path.join("out", read_file("out/latest").decode().strip())
    finish([PROGRAM, "--verify-checkpoint", newest])
    last = read_trainer(newest)["step"]
    resume_together(2, out="out", steps=last + 2)
    check_equal("last step", read_metrics()[-1]["step"], last + 2)


@test
def a_process_that_stands_still_is_noticed():
    make_noise()
    command = mpirun(2, command_line(**PARALLEL, cp=2, steps=100000, collective_timeout=5))
    with Running(command) as run:
        wait_until(lambda: "step 2/" in run.said()[0], "the second step")
        stopped = process_of_rank(run.process.pid, 1)
        os.kill(stopped, signal.SIGSTOP)
        try:
            code = run.wait()
        finally:
            try:
                os.kill(stopped, signal.SIGKILL)
            except ProcessLookupError:
                pass
        said = run.said()[1]
        check(code not in (0, 75), f"exit code {code}")
        # Another may follow, of the one that stood still when mpirun wakes it up to end it.
        error = next((line for line in said.splitlines() if line.startswith("error: ")), "")
        check(error.startswith("error: rank 0: stuck: waiting for other ranks"), said)
        check(" in: " in error and "--collective-timeout 5" in error, f"no phase is named: {said}")


def optimizer_files(checkpoint):
    return [name for name in sorted(os.listdir(checkpoint)) if name.startswith("optimizer-")]


def check_same_tensors(a, b):
    for name in sorted(set(os.listdir(a)) | set(os.listdir(b))):
        if name.endswith(".safetensors"):
            check(read_file(os.path.join(a, name)) == read_file(os.path.join(b, name)), f"{a} and {b} differ in {name}")


@test
def resumed_processes_end_in_the_same_bytes():
    make_noise()
    train_together(4, steps=4, zero=1, cp=2, out="whole")
    train_together(4, steps=2, zero=1, cp=2, out="sharded")
    check_equal("files", optimizer_files(checkpoint(2, "sharded")),
                [f"optimizer-{rank:05}-of-00004.safetensors" for rank in range(4)])
    for copy in ("unsharded", "three"):
        shutil.copytree("sharded", copy)
    resume_together(4, steps=4, out="sharded")
    resume_together(4, steps=4, out="unsharded", zero=0)
    for out in ("sharded", "unsharded"):
        check_same_tensors(checkpoint(4, "whole"), checkpoint(4, out))
    resume_together(3, steps=4, out="three", global_batch=3, cp=1)
    check_equal("files", optimizer_files(checkpoint(4, "three")),
                [f"optimizer-{rank:05}-of-00003.safetensors" for rank in range(3)])
    for out in ("whole", "three"):
        finish([PROGRAM, "--verify-checkpoint", checkpoint(4, out)])


@test
def what_fails_or_dies_on_one_rank_costs_no_checkpoint():
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_noise()
    options = {"save_every": 1, "zero": 1, "keep": 1, "global_batch": 2}
    train_together(2, steps=3, out="whole", **options)
    train_together(2, steps=2, out="good", **options)
    # Rank 1 opens, writes twice, syncs and closes one file; rank 0's calls are those of a single process.
    for kind, rank, call in (("EIO", 1, 3), ("ENOSPC", 0, 12), ("EIO", 0, 30), ("kill", 1, 2), ("kill", 0, 12),
                             ("kill", 0, 30)):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("good", "out")
        command = mpirun(2, [PROGRAM, "--device", "cpu", "--resume", "latest", "--steps", "3"])
        done = subprocess.run(command, env=failing_disk(kind, call) | {"FAIL_IO_RANK": str(rank)}, capture_output=True,
                              text=True)
        said = f"{kind} in call {call} of rank {rank}: {done.stderr}"
        check(done.returncode != 0, said)
        if kind != "kill":
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            check(len(errors) == 1 and f"saving a checkpoint: rank {rank}: cannot " in errors[0], said)
            check(not [name for name in os.listdir("out") if name.endswith(".tmp")], said)
        again = resume_together(2, steps=3)
        check("damaged" not in again.stderr, f"{said}, and then: {again.stderr}")
        check_same_tensors(checkpoint(3), checkpoint(3, "whole"))
