#!/usr/bin/env python3
"""End-to-end tests: the program as its users start it, from shards to checkpoints, and the scripts that prepare data.

    dev/test/end_to_end.py [WORD…]     only the tests whose names hold one of the words

Runs ./train_lighthouse on the CPU, or on the device that the environment variable TEST_DEVICE names. Ends with the line
"N passed, N failed".
"""

import gzip
import io
import json
import lzma
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
PROGRAM = os.path.join(ROOT, "train_lighthouse")
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
SHAPE = {"vocab-size": 264, "dim": 48, "layers": 3, "heads": 6, "kv-heads": 2, "ffn-dim": 56}
# Lighthouse attention in two of the three layers, in two chunks, on subsequences of 48 entries.
LIGHTHOUSE = {"selection": "on", "seq_len": 64, "levels": 3, "pool": 2, "topk": 8, "topk_tile": 4, "dense_layers": "0"}
CHECKPOINT_FILES = ["config.json", "manifest.json", "model.safetensors", "optimizer-00000-of-00001.safetensors",
                    "trainer.json"]
# More threads than these small models have work for only wait; waiting without spinning leaves busy machines their cores.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Without these mpirun refuses to run as root, as it would in a container.
os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
HELP_OPTIONS = """train-data val-data seed model vocab-size dim layers heads kv-heads ffn-dim rope-theta norm-eps
    seq-len batch-size global-batch selection levels pool topk topk-tile scorer dense-layers steps lr warmup-steps
    lr-schedule final-lr-frac beta1 beta2 eps weight-decay grad-clip out save-every keep keep-every resume val-every
    val-batches val-selection log-every device recompute plan deterministic cp zero collective-timeout async-save
    on-save-error verify-checkpoint max-nonfinite skip-outliers outlier-window time-limit help""".split()

tests = []


# --- the harness -----------------------------------------------------------------------------------------------------


class Failure(Exception):
    pass


def test(function):
    """Registers a test. It is called with a fresh directory of its own, which is the working directory."""
    tests.append(function)
    return function


def check(holds, message):
    if not holds:
        raise Failure(message)


def check_equal(what, value, expected):
    check(value == expected, f"{what}: {shorten(value)}, expected {shorten(expected)}")


def shorten(value):
    text = repr(value)
    return text if len(text) <= 500 else f"{text[:300]} … ({len(text)} characters)"


def run_test(function):
    """Whether the test passes; prints its name, and why if it does not."""
    with tempfile.TemporaryDirectory(prefix="end_to_end.") as directory:
        os.chdir(directory)
        reason = ""
        try:
            function()
        except Failure as failure:
            reason = str(failure)
        except Exception:
            reason = traceback.format_exc()
        os.chdir(ROOT)
    print(f"{'FAIL' if reason else 'ok  '} {function.__name__.replace('_', ' ')}")
    for line in reason.splitlines():
        print(f"     {line}")
    sys.stdout.flush()
    return not reason


def main():
    words = sys.argv[1:]
    print("--- end to end")
    results = [run_test(function) for function in tests
               if not words or any(word in function.__name__ for word in words)]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


# --- starting programs -----------------------------------------------------------------------------------------------


def to_flags(options):
    return [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), str(value))]


def command_line(**options):
    """A small run; options given here go over its own."""
    defaults = {"device": DEVICE, "deterministic": "on", "train-data": "shards/text_train_*.bin", "seq-len": 40,
                "batch-size": 2, "global-batch": 2, "selection": "off", "steps": 4, "warmup-steps": 3, "out": "out",
                **SHAPE}
    return [PROGRAM, *to_flags(defaults | {name.replace("_", "-"): value for name, value in options.items()})]


def finish(command):
    """Runs a command; it has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode == 0, f"{' '.join(command)}\nended with {done.returncode}: {done.stderr}")
    return done


def train(**options):
    return finish(command_line(**options))


def resume(checkpoint="latest", **options):
    """Goes on with what the checkpoint records, and the options given here."""
    return finish([PROGRAM, *to_flags({"device": DEVICE, "resume": checkpoint} | options)])


def script(name, *arguments):
    return [os.path.join(ROOT, "scripts", name), *arguments]


def write_script(path, text):
    write_file(path, text.encode())
    os.chmod(path, 0o755)


def wait_until(holds, what, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        check(time.monotonic() < end, f"{what}: not within {seconds} seconds")
        time.sleep(0.01)


class Running:
    """A command that runs beside the test, with its output in files; `with` kills it should it still run then."""

    def __init__(self, command, environment=None):
        self.command = command
        self.files = [tempfile.NamedTemporaryFile("w") for _ in range(2)]
        # Where the tests run in the background, SIGINT is ignored, and would be in the command.
        self.process = subprocess.Popen(command, stdout=self.files[0], stderr=self.files[1], env=environment,
                                        stdin=subprocess.DEVNULL, start_new_session=True,
                                        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def said(self):
        """What is on its standard output and its standard error until now."""
        return [read_file(file.name).decode() for file in self.files]

    def send(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=60):
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{' '.join(self.command)}\nstill runs after {seconds} seconds; {self.said()[1]}")


def check_refused(command, *words):
    """The command has to end with exit code 1 and, warnings aside, one line on stderr that holds all the words."""
    done = subprocess.run(command, capture_output=True, text=True)
    said = f"{' '.join(command)}\nsays: {done.stderr}"
    check_equal(f"exit code; {said}", done.returncode, 1)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    check(len(lines) == 1 and lines[0].startswith("error: "), f"one line of error expected; {said}")
    for word in words:
        check(word in lines[0], f"\"{word}\" expected in it; {said}")


def dev_script(path, *arguments):
    return [sys.executable, os.path.join(ROOT, "dev", path), *arguments]


# --- data ------------------------------------------------------------------------------------------------------------


def write_file(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def make_text(sentences=400, seed=5):
    """Sentences of a few words: easy to learn, and not by frequencies alone."""
    chooser = random.Random(seed)
    words = ["lighthouse", "keeper", "climbs", "the", "narrow", "stairs", "every", "evening"]
    return " ".join(" ".join(words) + chooser.choice([".", "!", "?"]) for _ in range(sentences)).encode()


def make_shards():
    write_file("text/a", make_text(seed=5))
    write_file("text/b", make_text(60, seed=6))
    return finish(dev_script("data/byte_shards.py", "--out", "shards", "--val-fraction", "0.15", "text"))


def write_shard(path, tokens, magic=20240520, version=1, count=None):
    header = struct.pack("<3i", magic, version, len(tokens) if count is None else count)
    kind = "H" if magic == 20240520 else "I"
    write_file(path, header.ljust(1024, b"\0") + struct.pack(f"<{len(tokens)}{kind}", *tokens))


def read_shard(path):
    data = read_file(path)
    magic, version, count = struct.unpack_from("<3i", data)
    check_equal("magic and version of a shard", (magic, version), (20240520, 1))
    check_equal("size of a shard", len(data), 1024 + 2 * count)
    return list(struct.unpack_from(f"<{count}H", data, 1024))


def as_tokens(*documents):
    return [token for document in documents for token in [*document, 256]]


# --- checkpoints and metrics -----------------------------------------------------------------------------------------


def checkpoint(step, out="out"):
    return os.path.join(out, f"step_{step:08d}")


def read_directory(path):
    return {name: read_file(os.path.join(path, name)) for name in sorted(os.listdir(path))}


def check_same_checkpoint(a, b):
    a_files, b_files = read_directory(a), read_directory(b)
    check_equal(f"files of {a}", sorted(a_files), CHECKPOINT_FILES)
    check_equal(f"files of {b}", sorted(b_files), CHECKPOINT_FILES)
    different = [name for name in a_files if a_files[name] != b_files[name]]
    check(not different, f"{a} and {b} differ in {', '.join(different)}")


def check_same_state(a, b):
    """The weights and the optimizer's state of two checkpoints, whose recorded options may differ."""
    different = [name for name in CHECKPOINT_FILES if name.endswith(".safetensors")
                 if read_file(os.path.join(a, name)) != read_file(os.path.join(b, name))]
    check(not different, f"{a} and {b} differ in {', '.join(different)}")


def steps_kept(out="out"):
    return sorted(int(name[5:]) for name in os.listdir(out) if name.startswith("step_"))


def read_trainer(checkpoint):
    return json.loads(read_file(os.path.join(checkpoint, "trainer.json")))


def read_metrics(out="out"):
    return [json.loads(line) for line in read_file(os.path.join(out, "metrics.jsonl")).splitlines()]


# --- training --------------------------------------------------------------------------------------------------------


@test
def training_learns_more_than_frequencies():
    said = make_shards().stdout
    entropy = float(said.split("unigram entropy ")[1].split()[0])
    train(val_data="shards/text_val_*.bin", seq_len=64, global_batch=4, batch_size=4, steps=120, lr=1e-2,
          warmup_steps=10, val_every=50)
    metrics = read_metrics()
    first, last = metrics[0]["loss"], metrics[-1]["loss"]
    check(abs(first - math.log(264)) < 1, f"the first loss is {first}, not about log(264)")
    check(last < 0.7 * entropy, f"the loss ends at {last}; the unigram entropy is {entropy}")
    check(metrics[-1]["val_loss"] < 0.7 * entropy, f"the validation loss ends at {metrics[-1]['val_loss']}")
    check_equal("steps with a validation", [m["step"] for m in metrics if "val_loss" in m], [50, 100, 120])


@test
def learning_rates_follow_the_schedule():
    make_shards()
    steps, warmup, peak, final = 12, 4, 3e-3, 0.1

    def expected(kind, step):
        if step < warmup:
            return peak * (step + 1) / warmup
        start = warmup - 1 if kind != "wsd" else max(warmup - 1, steps - 1 - round(0.25 * steps))
        done = max(0.0, (step - start) / (steps - 1 - start))
        left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "wsd": 1 - done}
        return peak * (1 if kind == "constant" else final + (1 - final) * left[kind])

    for kind in ("constant", "linear", "cosine", "wsd"):
        train(lr_schedule=kind, steps=steps, warmup_steps=warmup, lr=peak, final_lr_frac=final, decay_frac=0.25,
              out=f"runs/{kind}")
        for step, entry in enumerate(read_metrics(f"runs/{kind}")):
            check(math.isclose(entry["lr"], expected(kind, step), rel_tol=1e-9),
                  f"{kind}, step {step}: {entry['lr']}, expected {expected(kind, step)}")


@test
def shards_of_either_token_type_train_the_same():
    tokens = as_tokens(make_text(100))
    write_shard("narrow.bin", tokens)
    write_shard("wide.bin", tokens, magic=20240801, version=7)
    train(train_data="narrow.bin", out="narrow")
    train(train_data="wide.bin", out="wide")
    name = "model.safetensors"
    check(read_directory(checkpoint(4, "narrow"))[name] == read_directory(checkpoint(4, "wide"))[name],
          "the models differ")


@test
def the_seed_decides_the_weights():
    make_shards()
    for out, seed in (("a", 7), ("b", 7), ("c", 8)):
        train(out=out, seed=seed)
    check_same_checkpoint(checkpoint(4, "a"), checkpoint(4, "b"))
    check(read_metrics("a")[0]["loss"] != read_metrics("c")[0]["loss"], "another seed gives the same loss")


# --- resuming --------------------------------------------------------------------------------------------------------


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


def checkpoints_left(out="out"):
    """The directories that hold a checkpoint, or its predecessor while it is replaced."""
    names = os.listdir(out) if os.path.exists(out) else []
    return sorted(name for name in names if name.startswith("step_") and not name.endswith(".tmp"))


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


def truncate(data):
    return data[:-1]


def flip_a_bit(data):
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1:]


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


# --- Lighthouse attention, and the two stages ------------------------------------------------------------------------


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
        done = subprocess.run(script("530m_98k_two_stage.sh", *steps, *options), env=environment, text=True,
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
        check_refused(script("530m_98k_two_stage.sh", *steps), steps[0])


# --- several processes -----------------------------------------------------------------------------------------------

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


def check_goes_on_as_one(go_on):
    """A run that stopped has its last step as checkpoint, and goes on from there as one process would have."""
    stopped = read_metrics()[-1]["step"]
    check_equal("checkpoints", steps_kept(), [stopped])
    go_on(stopped + 2)
    train(out="one", steps=stopped + 2, **PARALLEL)
    check_close_losses("out", "one")


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


# --- being asked to stop -----------------------------------------------------------------------------------------------


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
        check_stops_and_goes_on(command_line(**options), go_on, lambda run: run.send(number), number.name, 300)
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


# --- steps without finite values ---------------------------------------------------------------------------------------


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


# --- launchers, and runs that are kept going -------------------------------------------------------------------------


@test
def one_command_trains_on_all_devices_of_a_machine():
    make_noise()
    train(out="one", **PARALLEL)
    options = to_flags(PARALLEL | SHAPE | {"steps": 4, "warmup_steps": 3})
    said = finish(script("mpirun_one_node.sh", "-n", "2", *options, "--cp", "2", "--out", "two")).stdout
    check("processes: 2, 2 for each sequence" in said, said)
    check_close_losses("two", "one")
    check_refused(script("mpirun_one_node.sh", "-n", "none"), "-n none")
    finish(script("mpirun_one_node.sh", "--help"))


@test
def the_1m_recipe_trains_on_the_hosts_of_a_file():
    make_noise()
    # As it stands, it asks for what was published.
    environment = os.environ | {"LAUNCHER": "echo", "OUT": os.path.abspath("out")}
    recipe = script("530m_1m_four_nodes.sh")
    said = subprocess.run(recipe, env=environment, capture_output=True, text=True, check=True).stdout
    for words in ("--seq-len 1048576", "--levels 4 --pool 4 --topk 4096 --dense-layers none", "--cp 8 --zero 1"):
        check(words in said, f"{words} expected: {said}")
    # Smaller, on two processes of this host, which go on where they were.
    write_file("hosts", b"# all of them\nlocalhost slots=2 # two\n")
    environment |= {"LAUNCHER": "", "HOSTS": os.path.abspath("hosts"), "VAL_DATA": "",
                    "DATA": os.path.abspath("noise_train.bin")}
    options = to_flags({**SHAPE, **PARALLEL, "cp": 2, "warmup_steps": 3, "train_data": environment["DATA"]})
    for steps in ("2", "4"):
        done = subprocess.run([*recipe, *options, "--steps", steps], env=environment, capture_output=True, text=True)
        check_equal(f"exit code; {done.stderr}", done.returncode, 0)
    train(out="one", **PARALLEL)
    check_close_losses("out", "one")
    for hosts, words in ((b"", ["no host"]), (b"localhost\n", ["localhost", "slots=8"]),
                         (b"a slots=2\nb slots=none\n", ["b slots=none", "slots=8"])):
        write_file("hosts", hosts)
        check_refused(script("mpirun_hosts.sh", "hosts"), "hosts", *words)
    check_refused(script("mpirun_hosts.sh", "missing"), "missing", "slots=8")


@test
def a_crashed_run_is_started_again():
    make_shards()
    options = {"steps": 60, "save_every": 3, "seq_len": 16}
    train(out="whole", **options)
    # The first try is killed once it has a checkpoint, the second before it does anything.
    write_script("crashing", f"""#!/bin/sh
echo try >> tries
case $(wc -l < tries) in
    1) '{PROGRAM}' "$@" & while [ ! -f out/latest ]; do sleep 0.01; done; kill -9 $!; wait $!;;
    2) kill -9 $$;;
    *) exec '{PROGRAM}' "$@";;
esac
""")
    done = finish(script("run_resilient.sh", "--wait", "0", "--out", "out", "./crashing", *command_line(**options)[1:]))
    check_same_checkpoint(checkpoint(60), checkpoint(60, "whole"))
    check_equal("losses", [m["loss"] for m in read_metrics()], [m["loss"] for m in read_metrics("whole")])
    starts = [" ".join(line.split()[:4]) for line in done.stderr.splitlines() if " starts " in line]
    check_equal("tries", starts, [f"run_resilient: try {number} starts" for number in (1, 2, 3)])


@test
def a_run_that_is_kept_going_saves_when_it_is_asked_to_stop():
    def command(steps):
        return script("run_resilient.sh", "--out", "out", *script("mpirun_one_node.sh", "-n", "2"),
                      *command_line(**PARALLEL, cp=2, steps=steps)[1:])

    make_noise()
    with Running(command(100000)) as run:
        wait_until(lambda: "step 2/" in run.said()[0], "the second step")
        run.send(signal.SIGTERM)
        code = run.wait()
        check_equal(f"exit code; {run.said()}", code, 75)
    check_goes_on_as_one(lambda steps: finish(command(steps)))


# A try takes its line of the file `plan`: the step of its checkpoint (or -) and its exit code, or "asked" for one that runs
# until it is asked to stop.
FAKE_TRAINER = """#!/bin/bash
echo "$*" >> calls
read -r step code <<< "$(sed -n "$(wc -l < calls)p" plan)"
mkdir -p out
if [ "$step" != - ]; then printf 'step_%08d\n' "$step" > out/latest; fi
if [ "$code" = asked ]; then
    trap 'echo step_00000009 > out/latest; exit 75' USR1
    touch running
    while :; do sleep 0.02; done
fi
exit "$code"
"""


def resilient(*plan, wait="0", failures="2"):
    """Keeps a fake trainer going, whose tries end as planned."""
    write_script("trainer", FAKE_TRAINER)
    write_file("plan", "".join(line + "\n" for line in plan).encode())
    for path in ("calls", "running", "out/latest"):
        if os.path.exists(path):
            os.remove(path)
    return script("run_resilient.sh", "--max-failures", failures, "--wait", wait, "--out", "out", "./trainer", "--a", "b")


def check_calls(tries):
    """The first try is a new run, the others resume."""
    calls = read_file("calls").decode().splitlines()
    place = f"--a b --out {os.path.abspath('out')}"
    check_equal("calls", calls, [place, *[f"{place} --resume latest"] * (tries - 1)])


@test
def a_run_without_progress_is_given_up():
    # Progress and preemptions count as no failure.
    said = finish(resilient("2 1", "2 139", "4 1", "4 1", "4 75", "4 75", "6 1", "6 1", "8 0")).stderr.splitlines()
    check_calls(9)
    check_equal("events", said[:4], [
        "run_resilient: try 1 starts anew",
        "run_resilient: try 1 ended with exit code 1, the newest checkpoint has step 2: again in 0 seconds",
        "run_resilient: try 2 starts from step 2",
        "run_resilient: try 2 ended with exit code 139, the newest checkpoint has step 2: again in 0 seconds"])
    check_equal("lines", (len(said), said[-1]), (18, "run_resilient: done"))
    done = subprocess.run(resilient("2 1", "2 1", "2 3", "2 0"), capture_output=True, text=True)
    check_equal(f"exit code; {done.stderr}", done.returncode, 3)
    check_calls(3)
    check("given up" in done.stderr.splitlines()[-1] and "step 2" in done.stderr, done.stderr)
    done = subprocess.run(resilient("- 1", "- 1", "- 0"), capture_output=True, text=True)
    check_equal(f"exit code; {done.stderr}", done.returncode, 1)
    check("--resume" not in read_file("calls").decode(), "it resumes without a checkpoint")
    for arguments, words in ((["--out", "out"], ["command"]), (["./trainer"], ["--out"]), (["--outt", "out"], ["--outt"]),
                             (["--out", "out", "./nothing"], ["./nothing"]),
                             (["--wait", "soon", "--out", "out", "./trainer"], ["--wait soon"]),
                             (["--max-failures", "0", "--out", "out", "./trainer"], ["--max-failures 0"])):
        check_refused(script("run_resilient.sh", *arguments), *words)


@test
def a_signal_stops_a_run_that_is_kept_going():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        with Running(resilient("2 1", "4 asked", "6 0")) as run:
            wait_until(lambda: os.path.exists("running"), "the second try")
            run.send(number)
            code = run.wait()
            check_equal(f"exit code after {number.name}; {run.said()[1]}", code, 75)
            check(number.name in run.said()[1], f"{number.name} is not named: {run.said()[1]}")
        check_equal("latest", read_file("out/latest"), b"step_00000009\n")
        check_calls(2)
    with Running(resilient("2 1", "4 0", wait="600")) as run:
        wait_until(lambda: "again in 600 seconds" in run.said()[1], "the wait between tries")
        run.send(signal.SIGTERM)
        code = run.wait()
        check_equal(f"exit code; {run.said()[1]}", code, 75)
    check_calls(1)


@test
def a_slurm_job_goes_on_where_it_was():
    make_noise()
    # srun runs its command once, and ends with the exit code in the file `code` if that ended well.
    here = os.getcwd()
    write_script("bin/srun", f"""#!/bin/sh
echo "$*" >> '{here}/srun_calls'
while [ "$1" != ./train_lighthouse ]; do shift; done
"$@" && exit "$(cat '{here}/code')"
""")
    write_script("bin/scontrol", f"#!/bin/sh\necho \"$*\" >> '{here}/scontrol_calls'\n")
    environment = os.environ | {
        "PATH": f"{here}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": ROOT, "OUT": f"{here}/out",
        "SLURM_CPUS_PER_TASK": "2", "DATA": f"{here}/noise_train.bin", "VAL_DATA": ""}

    def run(code, *arguments):
        write_file("code", str(code).encode())
        done = subprocess.run(script("slurm.sh", *arguments), env=environment, capture_output=True, text=True)
        check_equal(f"exit code; {done.stderr}", done.returncode, code)

    options = to_flags({**SHAPE, **PARALLEL, "save_every": 1, "train_data": environment["DATA"]})
    run(75, *options, "--steps", "2")
    check_equal("requeued", read_file("scontrol_calls"), b"requeue 7\n")
    run(1, *options, "--steps", "3")
    run(0, *options, "--steps", "4")
    check_equal("steps", [entry["step"] for entry in read_metrics()], [1, 2, 3, 4])
    check_equal("tries that resume", [b"--resume latest" in call for call in read_file("srun_calls").splitlines()],
                [False, True, True])
    shutil.rmtree("out")
    recipe = [os.path.join(ROOT, "scripts", "530m_98k_two_stage.sh"), "2", "4", *options]
    run(75, *recipe)
    run(0, *recipe)
    check_equal("stages", [entry["selection"] for entry in read_metrics()], ["on"] * 2 + ["off"] * 2)
    check_equal("requeued", read_file("scontrol_calls"), b"requeue 7\n" * 2)
    del environment["SLURM_JOB_ID"]
    check_refused(script("slurm.sh", "--steps", "3"), "sbatch")


# --- checkpoints -----------------------------------------------------------------------------------------------------


@test
def old_checkpoints_go_and_milestones_stay():
    make_shards()
    train(steps=8, save_every=1, keep=2, keep_every=3, out="milestones")
    check_equal("checkpoints", steps_kept("milestones"), [3, 6, 7, 8])
    train(steps=5, save_every=2, keep=1, out="newest")
    check_equal("checkpoints", steps_kept("newest"), [5])
    check_equal("latest", read_file("newest/latest").decode().strip(), "step_00000005")


def expected_shapes():
    dim, head_dim = SHAPE["dim"], SHAPE["dim"] // SHAPE["heads"]
    key_dim = SHAPE["kv-heads"] * head_dim
    shapes = {"model.embed_tokens.weight": [SHAPE["vocab-size"], dim], "model.norm.weight": [dim],
              "lm_head.weight": [SHAPE["vocab-size"], dim]}
    for layer in range(SHAPE["layers"]):
        parts = {"input_layernorm": [dim], "post_attention_layernorm": [dim], "self_attn.q_proj": [dim, dim],
                 "self_attn.k_proj": [key_dim, dim], "self_attn.v_proj": [key_dim, dim], "self_attn.o_proj": [dim, dim],
                 "mlp.gate_proj": [SHAPE["ffn-dim"], dim], "mlp.up_proj": [SHAPE["ffn-dim"], dim],
                 "mlp.down_proj": [dim, SHAPE["ffn-dim"]]}
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in parts.items()}
    return shapes


def read_safetensors(path):
    """Name → (type, shape), after checking that the tensors fill the file one after the other; and the metadata."""
    data = read_file(path)
    length, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        size = {"F32": 4, "BF16": 2}[entry["dtype"]] * math.prod(entry["shape"])
        check_equal(f"offsets of {name}", entry["data_offsets"], [end, end + size])
        end += size
    check_equal("size of the file", len(data), 8 + length + end)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}, metadata


@test
def a_checkpoint_is_a_hugging_face_llama():
    make_shards()
    train()
    with open(checkpoint(4) + "/config.json") as file:
        config = json.load(file)
    tensors, metadata = read_safetensors(checkpoint(4) + "/model.safetensors")
    expected = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 264,
                "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
                "num_key_value_heads": 2, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
                "max_position_embeddings": 40, "rms_norm_eps": 1e-5, "rope_theta": 10000, "bos_token_id": 256,
                "eos_token_id": 256}
    for name, value in expected.items():
        check_equal(f"config.json, {name}", config.get(name), value)
    check_equal("tensors", {name: shape for name, (_, shape) in tensors.items()}, expected_shapes())
    check_equal("types", {kind for kind, _ in tensors.values()},
                {{"float32": "F32", "bfloat16": "BF16"}[config["torch_dtype"]]})
    check_equal("metadata", metadata.get("format"), "pt")


# --- disks that fail -------------------------------------------------------------------------------------------------


def failing_disk(kind, call, count=1, below="out"):
    """The environment in which calls of the program on files below a directory fail, from that call on
    (dev/test/preload)."""
    return os.environ | {"LD_PRELOAD": os.path.join(ROOT, "build", "fail_io.so"), "FAIL_IO_BELOW": os.path.abspath(below),
                         "FAIL_IO_KIND": kind, "FAIL_IO_CALL": str(call), "FAIL_IO_FOR": str(count)}


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

    done = subprocess.run(command_line(steps=6, save_every=2), preexec_fn=full_disk, capture_output=True, text=True)
    check("step 6/6" in done.stdout, f"it did not train to its end: {done.stderr}")
    check_equal(f"exit code, since the last checkpoint is missing; {done.stderr}", done.returncode, 1)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    check(sum("metrics.jsonl" in line for line in warnings) == 1, f"one warning of the metrics: {done.stderr}")
    check(sum("saving a checkpoint" in line for line in warnings) == 2, f"one for each checkpoint: {done.stderr}")
    check_equal("what lies in --out", os.listdir("out"), ["metrics.jsonl"])
    check_equal("lines before the disk was full", [json.loads(line)["step"] for line in
                                                   read_file("out/metrics.jsonl").split(b"\n")[:2]], [1, 2])


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
            done = resume_on(failing_disk("EIO", call), steps=5, async_save=asynchronous)
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


# --- what the program says -------------------------------------------------------------------------------------------


@test
def help_lists_every_option():
    said = finish([PROGRAM, "--help"]).stdout
    missing = [name for name in HELP_OPTIONS if f"--{name} " not in said]
    check(not missing, f"--help does not list {', '.join(missing)}")


@test
def a_plan_is_printed_and_nothing_written():
    make_shards()
    said = finish(command_line() + ["--plan"]).stdout
    check("weights" in said and "activations" in said and "total" in said, said)
    check(not os.path.exists("out"), "--plan made the output directory")


@test
def wrong_options_are_refused():
    make_shards()
    for options, words in (
            ({"learning-rate": 1}, ["--learning-rate", "--help"]),
            ({"steps": "ten"}, ["--steps", "ten"]),
            ({"steps": "1e3"}, ["--steps", "1e3"]),
            ({"lr": "1e-3x"}, ["--lr", "1e-3x"]),
            ({"lr": "nan"}, ["--lr", "nan"]),
            ({"steps": ""}, ["--steps"]),
            ({"seq-len": "99999999999999999999"}, ["--seq-len", "99999999999999999999"]),
            ({"beta1": 1.5}, ["--beta1", "1.5"]),
            ({"layers": 0}, ["--layers", "0"]),
            ({"keep": 0}, ["--keep", "0"]),
            ({"lr-schedule": "exponential"}, ["--lr-schedule", "exponential", "cosine"]),
            ({"deterministic": "maybe"}, ["--deterministic", "maybe"]),
            ({"model": "7T"}, ["--model", "7T", "530M"]),
            ({"device": "tpu"}, ["--device", "tpu"]),
            ({"train-data": ""}, ["--train-data"]),
            ({"dim": 50}, ["--dim", "50", "6"]),
            ({"kv-heads": 4}, ["--kv-heads", "4", "6"]),
            ({"dim": 42}, ["7"]),
            ({"global-batch": 3}, ["--global-batch", "3", "2"]),
            ({"resume": "nowhere"}, ["--resume", "nowhere"]),
            ({"resume": "latest"}, ["out"])):
        check_refused(command_line(**options), *words)
        check(not os.path.exists("out"), f"{options}: the output directory was made")
    check_refused([*command_line(), "stray"], "stray")
    check_refused([*command_line(), "--lr"], "--lr")
    check(not os.path.exists("out"), "the output directory was made")


@test
def wrong_data_is_refused():
    make_shards()
    tokens = as_tokens(make_text(20))
    write_shard("good.bin", tokens)
    write_shard("magic.bin", tokens, magic=20240521)
    write_shard("version.bin", tokens, version=2)
    write_shard("count.bin", tokens, count=len(tokens) + 1)
    write_shard("negative.bin", tokens, count=-1)
    write_shard("token.bin", tokens[:100] + [264] + tokens[100:])
    write_file("header.bin", b"short")
    write_shard("short.bin", tokens[:40])
    for data, words in (
            ("nothing-*.bin", ["nothing-*.bin"]), ("magic.bin", ["magic.bin", "20240521", "20240520"]),
            ("version.bin", ["version.bin", "2"]), ("count.bin", ["count.bin"]), ("negative.bin", ["negative.bin", "-1"]),
            ("token.bin", ["token.bin", "100", "264"]), ("header.bin", ["header.bin"]), ("short.bin", ["40", "41"])):
        check_refused(command_line(train_data=data), "--train-data", *words)
        check_refused(command_line(val_data=data), "--val-data", *words)
        check(not os.path.exists("out"), f"{data}: the output directory was made")
    done = train(train_data="[gs]*.bin")
    check("warning: " in done.stderr and "short.bin" in done.stderr, f"no warning of a short shard: {done.stderr}")


@test
def a_new_run_does_not_touch_an_old_one():
    make_shards()
    train()
    before = read_directory(checkpoint(4))
    check_refused(command_line(seed=3), "out", "--resume")
    check(read_directory(checkpoint(4)) == before and len(read_metrics()) == 4, "the old run changed")


# --- preparing data --------------------------------------------------------------------------------------------------


@test
def byte_shards_hold_the_documents():
    documents = {"a.txt": bytes(range(256)), "b.txt.gz": make_text(30), "c/d.xz": b"\xff\x00" * 700, "e": b"tail"}
    write_file("in/a.txt", documents["a.txt"])
    write_file("in/b.txt.gz", gzip.compress(documents["b.txt.gz"]))
    write_file("in/c/d.xz", lzma.compress(documents["c/d.xz"]))
    write_file("in/e", documents["e"])
    write_file("in/empty", b"")
    os.symlink("a.txt", "in/link")
    finish(dev_script("data/byte_shards.py", "--out", "o", "--name", "n", "--val-fraction", "0", "in"))
    check_equal("files", os.listdir("o"), ["n_train_000000.bin"])
    a, b, d, e = documents.values()
    check_equal("tokens", read_shard("o/n_train_000000.bin"), as_tokens(a, b, e, d))


@test
def byte_shards_hold_out_documents():
    documents = [bytes([number]) * 100 for number in range(40)]
    for number, document in enumerate(documents):
        write_file(f"in/{number:02}", document)
    command = dev_script("data/byte_shards.py", "--out", "o", "--val-fraction", "0.1", "--shard-tokens", "1000", "in")
    finish(command)
    first = read_directory("o")
    check_equal("files", list(first), [*(f"text_train_{shard:06}.bin" for shard in range(4)), "text_val_000000.bin"])
    held_out = read_shard("o/text_val_000000.bin")
    numbers = held_out[::101]
    check_equal("documents held out", len(numbers), 4)
    check_equal("validation", held_out, as_tokens(*(documents[number] for number in numbers)))
    shards = [read_shard(f"o/text_train_{shard:06}.bin") for shard in range(4)]
    check_equal("sizes", [len(shard) for shard in shards], [1000, 1000, 1000, 636])
    rest = [document for number, document in enumerate(documents) if number not in numbers]
    check_equal("training", sum(shards, []), as_tokens(*rest))
    finish(command)
    check(read_directory("o") == first, "a second run makes other shards")
    finish([*command, "--shard-tokens", "5000"])
    check_equal("files of a run with larger shards", sorted(os.listdir("o")),
                ["text_train_000000.bin", "text_val_000000.bin"])


@test
def byte_shards_hold_out_the_end_of_a_single_document():
    text = bytes(random.Random(3).randbytes(1000))
    write_file("one", text)
    said = finish(dev_script("data/byte_shards.py", "--out", "o", "--val-fraction", "0.1", "one")).stdout
    check_equal("training", read_shard("o/text_train_000000.bin"), as_tokens(text[:900]))
    check_equal("validation", read_shard("o/text_val_000000.bin"), as_tokens(text[900:]))
    counts = [text[:900].count(value) for value in range(256)] + [1]
    entropy = -sum(count / 901 * math.log(count / 901) for count in counts if count)
    check(f"{entropy:.4f} nats" in said, f"entropy {entropy} expected: {said}")


@test
def byte_shards_fail_cleanly():
    write_file("in/a", b"good")
    write_file("in/b.gz", gzip.compress(make_text(50))[:-20])
    check_refused(dev_script("data/byte_shards.py", "--out", "o", "in"), "b.gz")
    check_equal("files left", os.listdir("o"), [])
    check_refused(dev_script("data/byte_shards.py", "--out", "o", "missing"), "missing")
    check_refused(dev_script("data/byte_shards.py", "--out", "o", "--shard-tokens", "0", "in/a"), "--shard-tokens")


@test
def linux_source_keeps_directories_together():
    with tarfile.open("kernel.tar.xz", "w:xz") as archive:
        for path in ("k/Makefile", "k/fs/a.c", "k/fs/deep/x.c", "k/fs/deep/y.h", "k/fs/z.c", "k/fs/picture.png",
                     "k/mm/page.c"):
            member = tarfile.TarInfo(path)
            member.size = len(path)
            archive.addfile(member, io.BytesIO(path.encode()))
    finish(dev_script("data/linux_source.py", "--archive", "kernel.tar.xz", "--out", "o", "--val-fraction", "0"))
    order = [b"k/fs/deep/x.c", b"k/fs/deep/y.h", b"k/fs/a.c", b"k/fs/z.c", b"k/mm/page.c", b"k/Makefile"]
    check_equal("tokens", read_shard("o/linux_train_000000.bin"), as_tokens(*order))


@test
def curves_are_compared():
    for name, factor in (("a", 1), ("b", 1.005), ("c", 1.02)):
        lines = [json.dumps({"step": step, "loss": 3 * (factor if step == 15 else 1)}) for step in range(1, 21)]
        write_file(name, "\n".join(lines).encode())
    finish(dev_script("reference/compare_curves.py", "a", "b"))
    check_refused(dev_script("reference/compare_curves.py", "a", "c"), "0.01")


@test
def a_two_stage_run_is_compared_with_a_dense_one():
    def metrics(name, stage1, ms):
        lines = []
        for step in range(1, 41):
            selects, spike = step <= stage1, 0.5 if 20 < step <= 25 and stage1 > 0 else 0
            entry = {"step": step, "loss": 3 - 0.01 * step + spike, "selection": "on" if selects else "off",
                     "ms": ms if selects else 60000}
            if step % 20 == 0:
                entry |= {"val_loss": 3.5, "val_loss_dense": 4.5} if selects else {"val_loss": 3.25}
            lines.append(json.dumps(entry))
        write_file(name, "\n".join(lines).encode())

    metrics("dense", 0, 60000)
    metrics("two", 20, 15000)
    said = finish(dev_script("evaluate/compare_two_stage.py", "dense", "two", "--window", "4")).stdout
    for words in ("40 steps in 40.0 minutes", "40 steps in 25.0 minutes", "loss at the end 3.2500", "1.60 times",
                  "2.8150", "+0.4750", "recovered after 5 steps", "stage 1 4.5000"):
        check(words in said, f"\"{words}\" expected: {said}")
    check_refused(dev_script("evaluate/compare_two_stage.py", "two", "dense"), "two", "dense")


# Says what the step benchmark says, once the program has found its options valid.
FAKE_STEP = """#!/bin/sh
echo "$*" >> calls
'{program}' --device cpu --plan "$@" > plan || exit 1
case "$*" in
*' 131072 '*'selection off'*)
    echo '  weights 1.00 GiB' >&2
    echo 'error: out of memory on {gpu}: no room for attention (9.00 GiB); a shorter --seq-len needs less' >&2
    exit 1;;
*{broken}*) echo 'error: CUDA: launch failed' >&2; exit 1;;
esac
echo '{gpu}: device copy 4.20 TB/s'
echo '{{"gpu": "{gpu}", "model": "530M", "tokens": '$2', "recompute": "ffn", "ms": 1234.567, "optimizer_ms": 4.9,' \\
     '"tokens_per_second": 98765.4, "planned_gib": 30.5, "memory_gib": 31.25}}'
"""


def write_fake_step(gpu="Some GPU", broken="no such option"):
    write_file("step", FAKE_STEP.format(program=PROGRAM, gpu=gpu, broken=broken.replace(" ", "\\ ")).encode())
    os.chmod("step", 0o755)


@test
def the_cost_of_context_is_shown():
    def command(*arguments):
        return dev_script("bench/context.py", "--step", "./step", "--out", "o", "--no-picture", *arguments)

    def rows(said):
        return [line for line in said.splitlines() if line.startswith("| ") and "tokens" not in line]

    def calls():
        return len(read_file("calls").splitlines())

    check_refused(command(), "./step", "--step")
    write_fake_step(broken="--seq-len 65536")
    # Two lengths before the one that fails; what they gave is kept and not measured again.
    check_refused(command("--lengths", "65536", "32768"), "--seq-len 65536", "ended with 1: CUDA: launch failed")
    check_equal("calls", calls(), 4)
    kept = read_file("o/results.jsonl")
    check_equal("results", len(kept.splitlines()), 3)
    write_fake_step(gpu="Another GPU")
    check_refused(command(), "Another GPU and Some GPU")
    check_equal("results", read_file("o/results.jsonl"), kept)

    write_fake_step()
    os.remove("calls")
    said = finish(command()).stdout
    check_equal("calls", calls(), 4 + 6 + 7 - 3)
    measured = "ffn | 1234.6 | 98.8k | 31.25 |"
    four, everywhere = "Lighthouse, four layers dense", "Lighthouse in all layers"
    expected = []
    for tokens in (32768, 65536, 98304, 131072):
        dense = "| does not fit | | |" if tokens == 131072 else measured
        expected += [f"| {tokens} | dense | {dense}",
                     f"| {tokens} | {four} (3,4,{1536 if tokens == 98304 else 2048}) | {measured}",
                     f"| {tokens} | {everywhere} (3,4,2048) | {measured}"]
    expected += [f"| 262144 | {four} (3,4,2048) | {measured}", f"| 262144 | {everywhere} (3,4,2048) | {measured}",
                 f"| 524288 | {four} (3,4,2048) | {measured}", f"| 524288 | {everywhere} (4,4,4096) | {measured}",
                 f"| 1048576 | {everywhere} (4,4,4096) | {measured}"]
    check_equal("table", rows(said), expected)
    check("Some GPU, 530M model" in said and "4.9 ms" in said, said)

    # Results from elsewhere are shown without measuring, also of several files.
    lines = read_file("o/results.jsonl").splitlines(keepends=True)
    write_file("a", b"".join(lines[:9]))
    write_file("b", b"".join(lines[9:]))
    os.remove("step")
    said = finish(dev_script("bench/context.py", "--no-picture", "--draw", "b", "a")).stdout
    check_equal("table", rows(said), expected)
    write_file("b", b"".join(lines)[:-20])
    check_refused(dev_script("bench/context.py", "--no-picture", "--draw", "b"), f"b, line {len(lines)}")
    check_refused(command("--variants", "dense", "--lengths", "262144"), "--dense-up-to")


if __name__ == "__main__":
    sys.exit(main())
