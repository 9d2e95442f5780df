"""What the tests of several processes share."""

import math
import os
import random
import subprocess

from .harness import (
    LIGHTHOUSE, PROGRAM, Failure, check, check_equal, command_line, finish, read_file, read_metrics, to_flags,
    write_shard,
)

# With selection in four chunks, so that two processes can share a sequence; on the CPU, which any number of processes can.
PARALLEL = {**LIGHTHOUSE, "topk": 16, "device": "cpu", "batch_size": 1, "global_batch": 4, "train_data": "noise_train.bin"}


def make_noise():
    """Random tokens. Where no two contexts are alike no scores are nearly equal, and what is selected does not depend on the
    order of sums."""
    chooser = random.Random(4)
    for name, count in (("train", 20000), ("val", 1000)):
        write_shard(f"noise_{name}.bin", chooser.choices(range(256), k=count))


def mpirun(processes, command):
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1",
            "-x", "OMP_NUM_THREADS=1", "-np", str(processes), *command]


def train_together(processes, **options):
    return finish(mpirun(processes, command_line(**PARALLEL | options)))


def resume_together(processes, **options):
    return finish(mpirun(processes, [PROGRAM, *to_flags({"device": "cpu", "resume": "latest"} | options)]))


def check_close_losses(out, expected):
    """Every loss of both runs' metrics, of training and validation."""
    metrics, expected_metrics = read_metrics(out), read_metrics(expected)
    check_equal(f"steps of {out}", [m["step"] for m in metrics], [m["step"] for m in expected_metrics])
    for entry, other in zip(metrics, expected_metrics):
        names = [name for name in entry if "loss" in name]
        check_equal(f"losses of step {entry['step']}", names, [name for name in other if "loss" in name])
        for name in names:
            check(math.isclose(entry[name], other[name], rel_tol=1e-5),
                  f"{out}, step {entry['step']}: {name} {entry[name]}, expected {other[name]}")


def check_refused_together(processes, command, *words):
    """All processes have to end with exit code 1, and one of them with a line that holds the words."""
    done = subprocess.run(mpirun(processes, command), capture_output=True, text=True)
    said = f"{' '.join(command)}\nsays: {done.stderr}"
    check_equal(f"exit code; {said}", done.returncode, 1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    check(len(errors) == 1, f"one line of error expected; {said}")
    for word in words:
        check(word in errors[0], f"\"{word}\" expected in it; {said}")


def process_of_rank(launcher, rank):
    """The process id of a rank that this mpirun has started."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(read_file(f"/proc/{entry}/stat").rpartition(b")")[2].split()[1])
            if parent == launcher and f"OMPI_COMM_WORLD_RANK={rank}".encode() in \
                    read_file(f"/proc/{entry}/environ").split(b"\0"):
                return int(entry)
        except OSError:
            pass  # it has ended
    raise Failure(f"no process of rank {rank}")
