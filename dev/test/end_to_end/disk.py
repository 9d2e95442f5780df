"""Disks that fail."""

import os
import resource
import shutil
import signal
import subprocess
import time

from .harness import (
    CHECKPOINT_FILES, DEVICE, PROGRAM, ROOT, Failure, check, check_equal, check_refused, check_same_state, checkpoint,
    checkpoints_left, command_line, failing_disk, finish, flip_a_bit, make_shards, read_file, read_metrics, resume,
    steps_kept, test, to_flags, train, truncate, write_file,
)


def prepare_failing_disk():
    """A run of three steps that ended well in whole, and one that is at step two in good."""
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_shards()
    train(steps=3, save_every=1, keep=1, out="whole")
    train(steps=2, save_every=1, keep=1, out="good")


def resume_on(disk, **options):
    """Goes on with a copy of good, as out."""
    shutil.rmtree("out", ignore_errors=True)
    shutil.copytree("good", "out")
    return subprocess.run([PROGRAM, *to_flags({"device": DEVICE, "resume": "latest", "steps": 3} | options)], env=disk,
                          capture_output=True, text=True)


def check_recovers(said):
    """What is in out is good, and goes on as if nothing had happened."""
    if read_file("out/latest") != b"step_00000003\n":
        done = resume(out="out", steps=3)
        check(not done.stderr, f"{said}\nand then: {done.stderr}")
    check_same_state(checkpoint(3), checkpoint(3, "whole"))


def fail_at_every_call(kind, count, **options):
    """One run for each call on files that it makes: that call fails. Returns how many ended with an error."""
    errors, call, quiet = 0, 0, 0
    while quiet < 2:
        call += 1
        check(call < 200, "no run succeeds")
        done = resume_on(failing_disk(kind, call, count), **options)
        said = f"{kind} in call {call}: exit code {done.returncode}, {done.stderr}"
        lines = done.stderr.splitlines()
        check(done.returncode in (0, 1), said)
        check(sum(line.startswith("error: ") for line in lines) == done.returncode, f"one line of error: {said}")
        check(all(line.startswith(("error: ", "warning: ")) for line in lines), said)
        check(done.returncode == 0 or {"ENOSPC": "No space left", "full": "No space left", "EIO": "Input/output error",
                                       "EROFS": "Read-only file system"}[kind] in done.stderr, said)
        check_recovers(said)
        errors += done.returncode
        # A call that nothing depends on may fail unnoticed, but not two of them.
        quiet = 0 if lines else quiet + 1
    return errors


@test
def a_failing_disk_costs_no_checkpoint():
    prepare_failing_disk()
    for kind, count in (("EIO", 1), ("EIO", 0), ("full", 1)):
        errors = fail_at_every_call(kind, count)
        check(errors > 20, f"only {errors} calls that fail with {kind} are noticed")


@test
def a_failing_disk_costs_no_checkpoint_that_training_waits_for():
    prepare_failing_disk()
    errors = fail_at_every_call("full", 1, async_save="off")
    check(errors > 20, f"only {errors} failing calls are noticed")


@test
def a_full_disk_does_not_end_training():
    make_shards()

    def full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # of each file

    done = subprocess.run(command_line(steps=6, save_every=2, on_save_error="continue"), preexec_fn=full_disk,
                          capture_output=True, text=True)
    check("step 6/6" in done.stdout, f"it did not train to its end: {done.stderr}")
    check_equal(f"exit code, since the last checkpoint is missing; {done.stderr}", done.returncode, 1)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    check(sum("metrics.jsonl" in line for line in warnings) == 1, f"one warning of the metrics: {done.stderr}")
    check(sum("saving a checkpoint" in line for line in warnings) == 2, f"one for each checkpoint: {done.stderr}")
    check_equal("what lies in --out", os.listdir("out"), ["metrics.jsonl"])
    check_equal("lines before the disk was full", [entry["step"] for entry in read_metrics()], [1, 2])
    check("complete in" not in done.stdout, f"a checkpoint that failed is called complete: {done.stdout}")
    # By default a run of which no checkpoint can be written does not train to its end for nothing.
    for asynchronous in ("on", "off"):
        done = subprocess.run(command_line(steps=6, save_every=2, out="other", async_save=asynchronous),
                              preexec_fn=full_disk, capture_output=True, text=True)
        check(done.returncode == 1 and "step 6/6" not in done.stdout and "complete in" not in done.stdout, done.stdout)
        check("error: saving a checkpoint: " in done.stderr and "--on-save-error continue" in done.stderr, done.stderr)


@test
def a_run_killed_at_any_call_goes_on_to_the_same_bytes():
    prepare_failing_disk()
    call = 0
    while True:
        call += 1
        check(call < 200, "no run succeeds")
        done = resume_on(failing_disk("kill", call))
        if done.returncode == 0:
            break
        check_equal("exit code", done.returncode, -signal.SIGKILL)
        check_recovers(f"killed at call {call}")
    check(call > 30, f"only {call} calls")


@test
def a_replacement_that_fails_at_any_call_costs_no_checkpoint():
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    make_shards()
    train(steps=4, save_every=1, keep=3, out="whole")
    train(steps=3, save_every=1, keep=2, out="good")
    for kind, bad in (("kill", -signal.SIGKILL), ("EIO", 1)):
        call, quiet = 0, 0
        while quiet < 2:
            call += 1
            check(call < 200, "no run succeeds")
            done = resume_on(failing_disk(kind, call), resume="out/step_00000002")  # step 3 is there
            said = f"{kind} in call {call}: {done.stderr}"
            check(done.returncode in (0, bad), said)
            left = checkpoints_left()
            check("step_00000002" in left and (set(left) & {"step_00000003", "step_00000003.old"}), f"{said}, left {left}")
            for name in left:
                check_same_state(f"out/{name}", checkpoint(int(name[5:13]), "whole"))
            quiet = quiet + 1 if done.returncode == 0 and not done.stderr else 0
            done = resume(out="out", steps=4)
            check("damaged" not in done.stderr, f"{said}, and then: {done.stderr}")
            check_same_state(checkpoint(4), checkpoint(4, "whole"))
        check(call > 20, f"only {call} calls")


@test
def short_writes_are_gone_on_with():
    prepare_failing_disk()
    done = resume_on(failing_disk("short", 1, 0))
    check(done.returncode == 0 and not done.stderr, done.stderr)
    check_recovers("short writes")


def fail_at_every_read(below, *words):
    """One run for each read below a directory: it fails, with lines that hold the words, one of them of error unless there
    is a way on. Returns how many."""
    for call in range(1, 100):
        done = resume_on(failing_disk("read", call, below=below))
        check(len(read_metrics()) >= 2, f"lines of metrics are lost; {done.stderr}")
        if not done.stderr:
            return call - 1
        errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
        check(done.returncode == len(errors) and all(line.startswith("error: ") for line in errors), done.stderr)
        for word in (below, "Input/output error", *words):
            check(word in done.stderr, f"read {call}: \"{word}\" expected: {done.stderr}")
    raise Failure("no run succeeds")


@test
def reads_that_fail_are_named():
    prepare_failing_disk()
    errors = fail_at_every_read("shards", "--train-data: cannot read shards/text_train_000000.bin at byte ")
    check(errors >= 4, f"only {errors} reads of shards fail")
    check_recovers("reads of shards that fail")
    errors = fail_at_every_read("out")
    check(errors > 10, f"only {errors} reads of checkpoints fail")
    check_recovers("reads of checkpoints that fail")


@test
def a_failed_save_does_not_end_training_unless_asked():
    prepare_failing_disk()
    train(steps=5, save_every=1, keep=1, out="longer")
    # The calls after the first ten are of the save of step 3; those of later ones succeed.
    for call in (10, 20, 30):
        for asynchronous in ("on", "off"):
            done = resume_on(failing_disk("EIO", call), steps=5, async_save=asynchronous, on_save_error="continue")
            lines = done.stderr.splitlines()
            check(done.returncode == 0 and len(lines) == 1 and lines[0].startswith("warning: saving a checkpoint: ") and
                  "step_00000003" in lines[0] and "training goes on" in lines[0], f"call {call}: {done.stderr}")
            check_equal("checkpoints", steps_kept(), [5])
            check_same_state(checkpoint(5), checkpoint(5, "longer"))
            done = resume_on(failing_disk("EIO", call), steps=5, async_save=asynchronous, on_save_error="stop")
            check(done.returncode == 1 and done.stderr.startswith("error: saving a checkpoint: "), done.stderr)
            check(steps_kept()[0] == 2, f"checkpoints {steps_kept()}")
            resume(out="out", steps=5)
            check_same_state(checkpoint(5), checkpoint(5, "longer"))


@test
def a_checkpoint_that_is_complete_is_said_to_be():
    make_shards()
    for asynchronous in ("on", "off"):
        said = train(steps=4, save_every=2, out=asynchronous, async_save=asynchronous).stdout
        for step in (2, 4):
            lines = [line for line in said.splitlines() if line.startswith(f"checkpoint of step {step}: complete in ")]
            check(len(lines) == 1 and checkpoint(step, asynchronous) in lines[0] and "MiB" in lines[0], said)


@test
def too_little_room_for_checkpoints_is_a_warning():
    # 64 KiB: less than the checkpoints of any model.
    make_shards()
    finish(["make", "-s", "-C", ROOT, "build/fail_io.so"])
    library = os.path.join(ROOT, "build", "fail_io.so")
    done = subprocess.run(command_line(save_every=1), capture_output=True, text=True,
                          env=os.environ | {"LD_PRELOAD": library, "FAIL_IO_ROOM": str(64 << 10)})
    check_equal(f"exit code; {done.stderr}", done.returncode, 0)
    lines = done.stderr.splitlines()
    check(len(lines) == 1 and lines[0].startswith("warning: ") and "64.00 KiB" in lines[0] and "--out out" in lines[0],
          f"one warning of the room: {done.stderr}")
    said = train(save_every=1, out="roomy")
    check(not said.stderr and "checkpoints: " in said.stdout, said.stderr)


@test
def checkpoints_beside_training_and_between_steps_are_the_same():
    make_shards()
    train(steps=4, save_every=1, out="beside")
    train(steps=4, save_every=1, out="between", async_save="off")
    for step in (3, 4):
        check_same_state(checkpoint(step, "beside"), checkpoint(step, "between"))


@test
def a_run_that_stops_finishes_the_checkpoint_that_it_is_writing():
    make_shards()
    shutil.copy("shards/text_train_000000.bin", "data.bin")
    command = command_line(train_data="data.bin", steps=1000, save_every=1, seq_len=16, keep=2)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not os.path.exists("out/latest"):
        time.sleep(0.001)
    os.remove("data.bin")
    said = process.communicate()[1]
    check_equal("exit code", process.returncode, 1)
    check(said.startswith("error: --train-data: cannot read data.bin at byte ") and len(said.splitlines()) == 1, said)
    steps = [entry["step"] for entry in read_metrics()]
    check_equal("the newest checkpoint and the last step", steps_kept()[-1], steps[-1])
    check(not [name for name in os.listdir("out") if name.endswith(".tmp")], f"left: {os.listdir('out')}")
    finish([PROGRAM, "--verify-checkpoint", checkpoint(steps[-1])])


@test
def a_checkpoint_is_verified():
    make_shards()
    train()
    said = finish([PROGRAM, "--verify-checkpoint", checkpoint(4)])
    check(said.stdout.startswith(f"{checkpoint(4)}: good, step 4, 8 samples, ") and len(said.stdout.splitlines()) == 1,
          said.stdout)
    for name in CHECKPOINT_FILES:
        path = os.path.join(checkpoint(4), name)
        good = read_file(path)
        for damage in (truncate, flip_a_bit):
            write_file(path, damage(good))
            check_refused([PROGRAM, "--verify-checkpoint", checkpoint(4)], checkpoint(4), "not a good checkpoint", name)
        write_file(path, good)
    check_refused([PROGRAM, "--verify-checkpoint", "out"], "out", "manifest.json")
