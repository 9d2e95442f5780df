"""Runs in which some steps are dense in all layers, or the dense layers rotate."""

import shutil

from .harness import (
    LIGHTHOUSE, check, check_equal, check_refused, check_same_state, checkpoint, command_line,
    finish, make_shards, read_metrics, resume, test, train, write_shard,
)
from .processes import PARALLEL, check_close_losses, check_refused_together, train_together
from .resume import check_resume_is_exact

# The options of a run, and how many of the three layers are dense in its steps.
SCHEDULES = (({"dense_every": 3}, [1, 1, 3, 1, 1, 3, 1, 1]),
             ({"dense_first": 5}, [3, 3, 3, 3, 3, 1, 1, 1]),
             ({"dense_layers": "rotate:4"}, [1, 0, 1, 1, 1, 0, 1, 1]),
             ({"dense_layers": "rotate:2"}, [2, 1, 2, 1, 2, 1, 2, 1]),
             ({"dense_layers": "rotate:2", "dense_every": 4, "dense_first": 1, "dense_span": 16}, [3, 1, 2, 3, 2, 1, 2, 3]))


def losses(out="out"):
    return [entry["loss"] for entry in read_metrics(out)]


@test
def steps_that_are_all_dense_are_as_without_selection():
    make_shards()
    train(steps=4, seq_len=64, out="dense")
    for out, options in (("every", {"dense_every": 1}), ("first", {"dense_first": 9}), ("span", {"dense_every": 1,
                         "dense_span": 64}), ("rotate", {"dense_layers": "rotate:1"})):
        train(steps=4, out=out, **LIGHTHOUSE | options)
        check_same_state(checkpoint(4, out), checkpoint(4, "dense"))
        check_equal("losses", losses(out), losses("dense"))
        check_equal("stages", {(entry["selection"], entry["dense_layers"]) for entry in read_metrics(out)}, {("off", 3)})


@test
def a_run_resumed_in_the_middle_of_a_schedule_ends_in_the_same_bytes():
    for options, dense_layers in SCHEDULES:
        for out in ("whole", "halves"):
            shutil.rmtree(out, ignore_errors=True)
        check_resume_is_exact(**LIGHTHOUSE | options)
        metrics = read_metrics("halves")
        check_equal(f"dense layers with {options}", [entry["dense_layers"] for entry in metrics], dense_layers)
        check_equal("stages", [entry["selection"] for entry in metrics], ["off" if n == 3 else "on" for n in dense_layers])


@test
def the_second_stage_ignores_the_schedule():
    make_shards()
    train(steps=3, dense_every=2, dense_span=16, **LIGHTHOUSE)
    for copy in ("as_it_was", "without"):
        shutil.copytree("out", copy)
    said = resume(out="as_it_was", selection="off", steps=6)
    check_equal("warnings", said.stderr, "")
    check("dense step" not in said.stdout, f"dense steps are announced: {said.stdout}")
    resume(out="without", selection="off", steps=6, dense_every=0, dense_span=0)
    check_same_state(checkpoint(6, "as_it_was"), checkpoint(6, "without"))


@test
def dense_steps_are_seen():
    make_shards()
    said = train(steps=4, dense_every=2, dense_first=1, dense_span=16, val_data="shards/text_val_*.bin", val_every=1,
                 **LIGHTHOUSE).stdout
    check("dense steps: " in said and "; 3 of 4, attention in spans of 16 tokens" in said, said)
    check_equal("lines of dense steps", said.count("| selection off, dense step |"), 3)
    check_equal("lines of usual steps", said.count("| selection on |"), 1)
    metrics = read_metrics()
    for entry in metrics:
        check(entry["val_loss"] != entry["val_loss_dense"], f"both losses are the same: {entry}")
    # Steps that change nothing: whatever their type, the losses are those of the weights.
    resume(steps=8, lr=0, out="out")
    same = {(entry["val_loss"], entry["val_loss_dense"]) for entry in read_metrics()[3:]}
    check_equal("validation losses of the same weights", len(same), 1)
    done = train(steps=1, out="span", dense_span=16, **LIGHTHOUSE)
    check("--dense-span 16 has no effect" in done.stderr, f"no warning: {done.stderr}")


@test
def recomputing_changes_no_byte_of_a_run_with_dense_steps():
    make_shards()
    options = SCHEDULES[-1][0]
    for level in ("none", "qkv", "block"):
        train(steps=4, recompute=level, out=level, **LIGHTHOUSE | options)
    for level in ("qkv", "block"):
        check_same_state(checkpoint(4, "none"), checkpoint(4, level))


@test
def several_processes_follow_a_schedule_as_one():
    # In no sequence two tokens are alike: equal ones have equal norms before any attention, and rounding would choose.
    write_shard("noise_train.bin", [(17 * i + i // 251 * 3) % 251 for i in range(20000)])
    for number, options in enumerate(({"dense_every": 2}, {"dense_first": 2}, {"dense_every": 2, "dense_span": 8},
                                      {"dense_layers": "rotate:2"})):
        options = PARALLEL | options | {"steps": 4}
        train(out=f"one{number}", **options)
        for out, processes, parallel in (("two", 2, {"cp": 2}), ("four", 4, {"cp": 2, "zero": 1}), ("data", 4, {})):
            train_together(processes, out=f"{out}{number}", **options | parallel)
            check_close_losses(f"{out}{number}", f"one{number}")
            check_equal("dense layers", [entry["dense_layers"] for entry in read_metrics(f"{out}{number}")],
                        [entry["dense_layers"] for entry in read_metrics(f"one{number}")])


@test
def schedules_that_do_not_work_are_refused():
    make_shards()
    for options, words, works in (
            ({"dense_layers": "rotate:0"}, ["--dense-layers rotate:0", "rotate:3"], {"dense_layers": "rotate:3"}),
            ({"dense_layers": "rotate"}, ["--dense-layers rotate", "rotate:R"], {}),
            ({"dense_span": 24}, ["--dense-span 24", "--seq-len 64"], {"dense_span": 16}),
            ({"dense_span": 24}, ["--dense-span 24", "--seq-len 64"], {"dense_span": 32}),
            ({"dense_every": -1}, ["--dense-every -1"], {"dense_every": 0})):
        wrong = LIGHTHOUSE | {"dense_every": 2} | options
        check_refused(command_line(**wrong), *words, *(str(value) for value in works.values()))
        if works:
            finish(command_line(**wrong | works) + ["--plan"])


@test
def a_span_has_to_fit_a_process():
    write_shard("noise_train.bin", [17 * i % 251 for i in range(2000)])
    options = {"cp": 2, "dense_every": 2, "steps": 1}
    too_long = command_line(**PARALLEL | options | {"dense_span": 32})
    check_refused_together(2, too_long, "--dense-span 32", "16 tokens", "--cp 2", "16 does")
    train_together(2, dense_span=16, **options)
    check_equal("steps", len(read_metrics()), 1)
