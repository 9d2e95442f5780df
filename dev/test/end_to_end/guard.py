"""Steps without finite values, and updates that stand out."""

import math
import subprocess

from .harness import (
    PROGRAM, ROOT, check, check_equal, check_same_checkpoint, checkpoint, command_line, finish, make_shards,
    read_file, read_metrics, read_trainer, resume, test, train,
)
from .processes import PARALLEL, make_noise, mpirun, resume_together


def spoiled(command, rank, first_step, steps):
    """The command with a rank whose gradients are not finite in some steps (dev/test/preload). A step has six sums over
    ranks: head, layers from the last, norms, embedding; at the second of them the layer whose turn is next is spoiled."""
    finish(["make", "-s", "-C", ROOT, "build/spoil_gradients.so"])
    return ["env", f"LD_PRELOAD={ROOT}/build/spoil_gradients.so", f"SPOIL_RANK={rank}",
            f"SPOIL_FIRST={6 * (first_step - 1) + 2}", "SPOIL_EVERY=6", f"SPOIL_TIMES={steps}", *command]


@test
def a_step_without_finite_values_is_left_out():
    make_noise()
    command = mpirun(4, spoiled(command_line(**PARALLEL, steps=6, zero=1), rank=2, first_step=3, steps=1))
    done = subprocess.run(command, capture_output=True, text=True)
    check_equal(f"exit code; {done.stderr}", done.returncode, 0)
    said = next((line for line in done.stderr.splitlines() if "no update" in line), "")
    for words in ("warning: rank 0: step 3:", "gradient norm nan", "samples 8 to 11", "1 in a row of at most 3", "rank 2 ("):
        check(words in said, f"\"{words}\" expected in it: {said}")
    check("rank 1 (" not in said and "rank 3 (" not in said, f"ranks are blamed that did nothing: {said}")
    metrics = read_metrics()
    check_equal("steps left out", [m["step"] for m in metrics if m.get("skipped")], [3])
    check_equal("gradient norm of that step", metrics[2]["grad_norm"], None)
    check(all(math.isfinite(m["loss"]) for m in metrics), "a loss is not finite")
    trainer = read_trainer(checkpoint(6))
    check_equal("step, samples, skipped", [trainer[name] for name in ("step", "samples", "skipped")], [6, 24, 1])
    # Nobody's weights took part of it: with others' they would not be what one rank's run that goes on from here has.
    resume_together(4, out="out", steps=7)
    resume(checkpoint(6), out="one", steps=7, cp=1, device="cpu")
    check(math.isclose(read_metrics()[6]["loss"], read_metrics("one")[0]["loss"], rel_tol=1e-5), "the next losses differ")


@test
def updates_that_stand_out_are_left_out_and_resumed_so():
    make_shards()
    options = {"steps": 30, "skip_outliers": 1, "outlier_window": 8, "lr": 1e-2}
    said = train(out="whole", **options).stderr
    skipped = [m["step"] for m in read_metrics("whole") if m.get("skipped")]
    check(0 < len(skipped) < 20 and skipped[0] > 4, f"steps left out: {skipped}")
    check_equal("warnings", [step for step in range(1, 31) if f"step {step}: " in said], skipped)
    train(out="without", **options | {"skip_outliers": 0})
    check_equal("left out without the option", [m["step"] for m in read_metrics("without") if m.get("skipped")], [])
    train(out="parts", **options | {"steps": skipped[-1] - 1})
    resume(out="parts", steps=30)
    check_same_checkpoint(checkpoint(30, "whole"), checkpoint(30, "parts"))
    check_equal("skipped in all", read_trainer(checkpoint(30, "parts"))["skipped"], len(skipped))


@test
def too_many_steps_without_finite_values_end_the_run():
    make_noise()
    command = command_line(**PARALLEL, steps=100, save_every=2, max_nonfinite=2)
    done = subprocess.run(mpirun(2, spoiled(command, rank=1, first_step=4, steps=50)), capture_output=True, text=True)
    check_equal(f"exit code; {done.stderr}", done.returncode, 1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    check(len(errors) == 1 and "step 6:" in errors[0] and "--max-nonfinite 2" in errors[0], done.stderr)
    check_equal("steps left out", [m["step"] for m in read_metrics() if m.get("skipped")], [4, 5])
    # The save of the fourth step may have been under way.
    check_equal("the newest checkpoint", read_file("out/latest").decode().strip(), "step_00000004")
    finish([PROGRAM, "--verify-checkpoint", checkpoint(4)])
