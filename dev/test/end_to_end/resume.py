"""Runs that go on from checkpoints."""

import os
import random
import shutil
import signal
import subprocess
import time

from .harness import (
    CHECKPOINT_FILES, DEVICE, PROGRAM, as_tokens, check, check_equal, check_refused, check_same_checkpoint,
    check_same_state, checkpoint, checkpoints_left, command_line, finish, flip_a_bit, make_shards, make_text,
    read_directory, read_file, read_metrics, read_shard, resume, steps_kept, test, to_flags, train, truncate,
    write_file, write_shard,
)


def check_resume_is_exact(**options):
    make_shards()
    train(steps=8, save_every=4, out="whole", **options)
    train(steps=4, save_every=4, out="halves", **options)
    resume(out="halves", steps=8)
    check_same_checkpoint(checkpoint(8, "whole"), checkpoint(8, "halves"))
    losses = [[entry["loss"] for entry in read_metrics(out)] for out in ("whole", "halves")]
    check_equal("losses", losses[1], losses[0])


@test
def a_resumed_run_ends_in_the_same_bytes():
    check_resume_is_exact()


@test
def a_resumed_run_with_accumulation_ends_in_the_same_bytes():
    check_resume_is_exact(batch_size=2, global_batch=6)


@test
def a_resumed_run_past_an_epoch_ends_in_the_same_bytes():
    write_shard("small.bin", as_tokens(make_text(30)))
    samples = (len(read_shard("small.bin")) - 1) // 60
    check_resume_is_exact(train_data="small.bin", seq_len=60, batch_size=1, global_batch=samples // 4)


@test
def a_run_resumed_from_its_initial_weights_ends_in_the_same_bytes():
    make_shards()
    train(out="whole")
    train(out="parts", steps=0)
    check_equal("checkpoints of a run without steps", steps_kept("parts"), [0])
    resume(out="parts", steps=4)
    check_same_checkpoint(checkpoint(4, "whole"), checkpoint(4, "parts"))


@test
def a_killed_run_resumes_to_the_same_bytes():
    make_shards()
    options = {"steps": 60, "save_every": 3, "seq_len": 16}
    train(out="whole", **options)
    process = subprocess.Popen(command_line(out="killed", **options), stdout=subprocess.DEVNULL)
    while process.poll() is None and not os.path.exists("killed/latest"):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.wait()
    resume(out="killed")
    check_same_checkpoint(checkpoint(60, "whole"), checkpoint(60, "killed"))
    check_equal("losses", [m["loss"] for m in read_metrics("killed")], [m["loss"] for m in read_metrics("whole")])
    check_equal("what lies in --out", sorted(os.listdir("killed")), sorted(os.listdir("whole")))


def kill_a_run(command, chooser):
    """Starts it, waits for some of its steps, and kills it while it saves. Says what it printed on stderr."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    steps = chooser.randrange(1, 6)
    for line in process.stdout:
        steps -= line.startswith("step ")
        if steps == 0:
            break
    time.sleep(chooser.uniform(0, 0.008))
    process.send_signal(signal.SIGKILL)
    return process.communicate()[1]


def check_kills(kills, seed, progress=lambda killed: None):
    """Kills runs while they save, again and again, as they go on from what the last one left: that is always good, and never
    fewer checkpoints than before."""
    chooser = random.Random(seed)
    make_shards()
    options = {"steps": 30, "save_every": 1, "seq_len": 16}
    train(out="whole", keep=100, **options)
    before = []
    for killed in range(kills):
        keep = chooser.randrange(1, 4)
        if not before or before[-1].startswith("step_00000030"):
            shutil.rmtree("out", ignore_errors=True)
            before = []
            command = command_line(**options)
        else:
            # From an older one, the newer ones are replaced.
            older = [name for name in before if not name.endswith(".old")]
            start = f"out/{chooser.choice(older)}" if older and chooser.random() < 0.3 else "latest"
            command = [PROGRAM, *to_flags({"device": DEVICE, "out": "out", "resume": start})]
        said = kill_a_run([*command, "--keep", str(keep), "--async-save", chooser.choice(["on", "on", "off"])], chooser)
        check("error" not in said and "damaged" not in said, f"{' '.join(command)}\nsays: {said}")
        after = checkpoints_left()
        steps_before, steps_after = ({name[:13] for name in names} for names in (before, after))
        check(len(steps_after) >= min(len(steps_before), keep), f"kill {killed}: {before} before, {after} after")
        if before:
            named = read_file("out/latest").decode().strip()
            check(named in after or f"{named}.old" in after, f"kill {killed}: latest names {named}, there are {after}")
        for name in after:
            check_same_state(f"out/{name}", checkpoint(int(name[5:13]), "whole"))
            if killed % 5 == 0:
                finish([PROGRAM, "--verify-checkpoint", f"out/{name}"])
        before = after
        progress(killed + 1)
    if before:
        done = resume(out="out")
        check("damaged" not in done.stderr, done.stderr)
        check_same_state(checkpoint(30), checkpoint(30, "whole"))


@test
def runs_killed_while_they_save_leave_good_checkpoints():
    check_kills(20, seed=random.randrange(10**9))


@test
def a_resume_drops_the_metrics_of_steps_it_does_again():
    make_shards()
    train(steps=6, save_every=4)
    before = read_metrics()
    check_equal("steps", [entry["step"] for entry in before], [1, 2, 3, 4, 5, 6])
    with open("out/metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # as a crash leaves it
    resume(checkpoint(4))
    after = read_metrics()
    check_equal("steps", [entry["step"] for entry in after], [1, 2, 3, 4, 5, 6])
    check_equal("losses", [entry["loss"] for entry in after], [entry["loss"] for entry in before])


@test
def a_damaged_checkpoint_is_named_and_the_one_before_it_taken():
    make_shards()
    train(steps=4, save_every=2, out="good")
    for name in CHECKPOINT_FILES:
        for damage in (truncate, flip_a_bit):
            shutil.rmtree("out", ignore_errors=True)
            shutil.copytree("good", "out")
            path = os.path.join(checkpoint(4), name)
            write_file(path, damage(read_file(path)))
            check_refused([PROGRAM, "--device", DEVICE, "--resume", checkpoint(4)], checkpoint(4), name)
            done = resume(out="out")
            check("warning: " in done.stderr and checkpoint(4) in done.stderr and name in done.stderr,
                  f"{damage.__name__} of {name} is not named: {done.stderr}")
            check(f"resuming {checkpoint(2)}" in done.stdout, f"{damage.__name__} of {name}: {done.stdout}")
            check_same_checkpoint(checkpoint(4), checkpoint(4, "good"))


@test
def without_a_good_checkpoint_latest_is_refused():
    make_shards()
    train(steps=4, save_every=2)
    for step in (2, 4):
        os.remove(os.path.join(checkpoint(step), "model.safetensors"))
    check_refused([PROGRAM, "--device", DEVICE, "--resume", "latest", "--out", "out"], "out")


@test
def a_resume_refuses_another_model():
    make_shards()
    train()
    before = read_directory(checkpoint(4))
    for option, value in (("--dim", "96"), ("--layers", "2"), ("--kv-heads", "3"), ("--ffn-dim", "64"),
                          ("--vocab-size", "272"), ("--rope-theta", "500"), ("--seq-len", "80"), ("--seed", "2")):
        check_refused([PROGRAM, "--device", DEVICE, "--resume", "latest", "--out", "out", "--steps", "8", option, value],
                      option, value)
    check(read_directory(checkpoint(4)) == before and steps_kept() == [4], "the checkpoint changed")


@test
def a_resume_restores_options_and_shows_changed_ones():
    make_shards()
    train(lr=0.004, weight_decay=0.25)
    said = resume(out="out", steps=6, lr=0.001).stdout
    check("0.25" in said and "the checkpoint has 0.004" in said and "the checkpoint has 4" in said, said)
    check_equal("learning rates", [entry["lr"] for entry in read_metrics()][3:], [0.004, 0.001, 0.001])
