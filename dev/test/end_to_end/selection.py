"""Lighthouse attention, and the two stages."""

import math
import os
import shutil
import subprocess

from .harness import (
    DEVICE, LIGHTHOUSE, SHAPE, check, check_equal, check_refused, check_same_checkpoint, check_same_state, checkpoint,
    command_line, finish, make_shards, read_metrics, read_trainer, resume, script, steps_kept, test, to_flags, train,
    write_file,
)
from .resume import check_resume_is_exact


@test
def a_second_stage_without_selection_goes_on_where_the_first_ended():
    make_shards()
    said = train(steps=4, **LIGHTHOUSE).stdout
    check_equal("steps printed as with selection", said.count("| selection on |"), 4)
    for copy in ("a", "b", "on"):
        shutil.copytree("out", copy)
    for copy in ("a", "b"):
        said = resume(out=copy, selection="off", steps=6).stdout
        check_equal("steps printed as without selection", said.count("| selection off |"), 2)
    check_same_checkpoint(checkpoint(6, "a"), checkpoint(6, "b"))
    resume(out="on", steps=6)
    metrics, with_selection = read_metrics("a"), read_metrics("on")
    check_equal("stages", [entry["selection"] for entry in metrics], ["on"] * 4 + ["off"] * 2)
    check_equal("samples", [entry["samples"] for entry in metrics], [2, 4, 6, 8, 10, 12])
    check_equal("losses of the first stage", [entry["loss"] for entry in metrics[:4]],
                [entry["loss"] for entry in read_metrics()])
    ratio = metrics[4]["loss"] / with_selection[4]["loss"]
    check(ratio != 1 and abs(ratio - 1) < 0.05, f"without selection the next loss is {ratio} times that with it")
    trainer = read_trainer(checkpoint(6, "a"))
    check_equal("step and samples", (trainer["step"], trainer["samples"]), (6, 12))
    check_equal("selection on record", trainer["options"]["selection"], "off")


@test
def a_second_stage_is_ordinary_dense_training():
    make_shards()
    train(steps=0, **LIGHTHOUSE)
    resume(out="out", selection="off", steps=4)
    train(steps=4, seq_len=64, out="dense")
    check_same_state(checkpoint(4), checkpoint(4, "dense"))


@test
def a_resumed_first_stage_ends_in_the_same_bytes():
    check_resume_is_exact(global_batch=4, **LIGHTHOUSE)


@test
def recomputing_changes_no_byte_of_a_run_with_selection():
    make_shards()
    levels = ("none", "cheap", "ffn", "qkv", "block")
    for level in levels:
        train(steps=3, recompute=level, out=level, **LIGHTHOUSE)
    for level in levels[1:]:
        check_same_state(checkpoint(3, "none"), checkpoint(3, level))


@test
def selection_learns_what_dense_attention_learns():
    entropy = float(make_shards().stdout.split("unigram entropy ")[1].split()[0])
    train(val_data="shards/text_val_*.bin", global_batch=4, batch_size=4, steps=100, lr=1e-2, warmup_steps=10,
          **LIGHTHOUSE)
    resume(out="out", selection="off", steps=120)
    loss = read_metrics()[-1]["val_loss"]
    check(loss < 0.7 * entropy, f"the dense validation loss ends at {loss}; the unigram entropy is {entropy}")


@test
def dense_layers_are_those_named():
    make_shards()
    for out, layers in (("none", "none"), ("some", "2,0"), ("all", "0,1,2"), ("auto", "auto")):
        train(out=out, **LIGHTHOUSE | {"dense_layers": layers})
    train(out="dense", seq_len=64)
    losses = {out: read_metrics(out)[0]["loss"] for out in ("none", "some", "all")}
    check_equal("different first losses", len(set(losses.values())), 3)
    for out in ("all", "auto"):
        check_same_state(checkpoint(4, out), checkpoint(4, "dense"))
        check_equal("stages", {entry["selection"] for entry in read_metrics(out)}, {"off"})
    check_equal("auto on record", read_trainer(checkpoint(4, "auto"))["options"]["dense-layers"], "0,1,2")


@test
def validation_is_with_and_without_selection():
    make_shards()
    losses = {}
    for kind in ("same", "off", "both"):
        train(val_data="shards/text_val_*.bin", val_selection=kind, out=kind, **LIGHTHOUSE)
        last = read_metrics(kind)[-1]
        losses[kind] = {name: last[name] for name in ("val_loss", "val_loss_dense") if name in last}
    check_equal("losses", losses["same"] | losses["off"], losses["both"])
    check_equal("names", [list(losses[kind]) for kind in ("same", "off")], [["val_loss"], ["val_loss_dense"]])
    check(losses["both"]["val_loss"] != losses["both"]["val_loss_dense"], "both losses are the same")
    # A step that changes nothing.
    resume(out="both", selection="off", steps=5, lr=0)
    last = read_metrics("both")[-1]
    check("val_loss_dense" not in last, "a dense step has a second validation loss")
    check(math.isclose(last["val_loss"], losses["both"]["val_loss_dense"], rel_tol=1e-6),
          f"the dense loss was {losses['both']['val_loss_dense']}, and {last['val_loss']} without selection")


@test
def geometries_that_do_not_work_are_refused():
    make_shards()
    # What is given, what is said of it, and a value it names, which has to work.
    for options, words, works in (
            ({"pool": 3}, ["--pool 3", "power of two"], {"pool": 2}),
            ({"levels": 1}, ["--levels 1", "2"], {"levels": 2}),
            ({"levels": 9}, ["--pool 2", "--levels 9", "--seq-len 64"], {}),
            ({"topk_tile": 5, "topk": 12, "seq_len": 96}, ["--topk-tile 5", "even"], {"topk_tile": 6}),
            ({"topk_tile": 2}, ["--topk-tile 2", "--pool 2"], {"topk_tile": 4}),
            ({"topk": 10}, ["--topk 10", "--topk-tile 4"], {"topk": 8}),
            ({"topk": 2}, ["--topk 2", "--topk-tile 4"], {"topk": 4}),
            ({"seq_len": 66}, ["--seq-len 66", "--pool 2", "--levels 3"], {"seq_len": 64}),
            ({"topk": 12}, ["--topk 12", "3 chunks", "16"], {"topk": 8}),
            ({"topk": 12}, ["--topk 12", "3 chunks", "16"], {"topk": 16}),
            ({"topk": 32}, ["--topk 32", "8 chunks", "16"], {"topk": 16}),
            ({"seq_len": 12}, ["--topk-tile 4", "--seq-len"], {}),
            ({"dense_layers": "3"}, ["--dense-layers 3", "2"], {"dense_layers": "0,1,2"}),
            ({"dense_layers": "0;1"}, ["--dense-layers 0;1", "none"], {"dense_layers": "none"}),
            ({"dense_layers": "0,,1"}, ["--dense-layers 0,,1"], {}),
            ({"dense_layers": "-1"}, ["--dense-layers -1"], {}),
            ({"dense_layers": ""}, ["--dense-layers"], {}),
            ({"scorer": "best"}, ["--scorer best", "norm"], {"scorer": "norm"}),
            ({"selection": "maybe"}, ["--selection maybe", "off"], {"selection": "off"}),
            ({"val_selection": "on"}, ["--val-selection on", "both"], {"val_selection": "both"})):
        wrong = LIGHTHOUSE | options
        check_refused(command_line(**wrong), *words, *(str(value) for value in works.values()))
        if works:
            finish(command_line(**wrong | works) + ["--plan"])
        check(not os.path.exists("out"), f"{options}: the output directory was made")


@test
def what_a_device_cannot_do_is_refused_before_a_run():
    make_shards()
    command = command_line(**LIGHTHOUSE | {"levels": 9, "topk": 8, "seq_len": 2048}) + ["--plan"]
    if DEVICE == "cuda":
        check_refused(command, "--levels 9", "8")
    else:
        finish(command)
    check(not os.path.exists("out"), "the output directory was made")


@test
def the_published_recipe_goes_on_where_it_was():
    make_shards()
    environment = os.environ | {"OUT": os.path.abspath("out"), "VAL_DATA": "",
                                "DATA": os.path.abspath("shards/text_train_*.bin")}
    options = to_flags({"device": DEVICE, "global-batch": 2, "save-every": 2, "keep": 1, **SHAPE, **LIGHTHOUSE})

    def run(steps):
        done = subprocess.run(script("recipes/530m_98k_two_stage.sh", *steps, *options), env=environment, text=True,
                              capture_output=True)
        check_equal(f"exit code; {done.stderr}", done.returncode, 0)
        return done.stdout

    run(["3", "5"])
    check_equal("stages", [entry["selection"] for entry in read_metrics()], ["on"] * 3 + ["off"] * 2)
    check_equal("checkpoints", steps_kept(), [3, 5])
    shutil.copytree("out", "whole")
    check("nothing to do" in run(["3", "5"]), "a finished run does not say so")
    shutil.rmtree(checkpoint(5))
    write_file("out/latest", b"step_00000003\n")
    run(["3", "5"])
    check_same_checkpoint(checkpoint(5), checkpoint(5, "whole"))
    for steps in (["3"], ["5", "3"], ["3", "3"], ["0", "3"], ["ten", "20"]):
        check_refused(script("recipes/530m_98k_two_stage.sh", *steps), steps[0])
