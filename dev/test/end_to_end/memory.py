"""How much memory a run may take: it stays below the limit of its control group, saves included."""

import contextlib
import os
import subprocess

from .harness import check, check_equal, command_line, make_shards, steps_kept, test

MIB = 1 << 20


@contextlib.contextmanager
def control_group(limit):
    """A control group of this many bytes, as the file that takes its processes; None: no such group can be made here. Then
    the self-test still has what is read of control groups."""
    name = f"lighthouse_test_{os.getpid()}"
    group = None
    for top, file in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        directory = os.path.join(top, name)
        try:
            os.mkdir(directory)
            if os.path.exists(os.path.join(directory, file)):
                with open(os.path.join(directory, file), "w") as setting:
                    setting.write(str(limit))
                group = directory
                break
            os.rmdir(directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    try:
        yield group and os.path.join(group, "cgroup.procs")
    finally:
        if group:
            os.rmdir(group)


def run_limited(limit, **options):
    """A run whose state takes about 136 MiB and the copy of a checkpoint 108; None: it cannot be limited here."""
    wide = {"vocab_size": 4096, "dim": 512, "layers": 2, "heads": 4, "kv_heads": 1, "ffn_dim": 512, "device": "cpu",
            "steps": 4, "save_every": 2, "seq_len": 16, "batch_size": 1, "global_batch": 1}
    with control_group(limit) as processes:
        if processes is None:
            return None

        def enter():
            with open(processes, "w") as file:
                file.write("0")

        return subprocess.run(command_line(**wide | options), preexec_fn=enter, capture_output=True, text=True)


@test
def a_save_without_room_for_its_copy_waits_and_is_not_killed():
    make_shards()
    done = run_limited(250 * MIB)
    if done is None:
        return
    check_equal(f"exit code; {done.stderr}", done.returncode, 0)
    check("does not fit; training waits" in done.stdout, f"the plan does not say so: {done.stdout}")
    check("training waits while it is written" in done.stderr, f"no warning: {done.stderr}")
    check_equal("checkpoints", steps_kept(), [2, 4])
    done = run_limited(600 * MIB, out="roomy")
    check(done.returncode == 0 and "left on the host: fits" in done.stdout and "waits" not in done.stderr,
          done.stdout + done.stderr)


@test
def a_run_without_room_for_its_plan_is_refused_and_not_killed():
    make_shards()
    done = run_limited(120 * MIB)
    check(done is None or (done.returncode == 1 and "error: out of memory" in done.stderr), done and done.stderr)
    check(not os.path.exists("out/latest"), "there is a checkpoint")


@test
def a_step_shows_the_memory_of_its_process():
    make_shards()
    with open("/proc/meminfo") as file:
        total = int(next(line for line in file if line.startswith("MemTotal:")).split()[1]) * 1024
    balloon = b"1" * min(256 * MIB, total // 8)
    done = subprocess.run(command_line(device="cpu"), capture_output=True, text=True)
    shown = [float(value) for value, unit in (field.split() for field in done.stdout.split(" | ") if field.endswith(" MiB"))]
    check(len(shown) == 4 and all(1 < value < len(balloon) / MIB for value in shown), f"{shown} MiB")
