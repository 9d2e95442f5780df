"""What the end-to-end tests share: registering and checking, starting programs, making and reading what they work on."""

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
PROGRAM = os.path.join(ROOT, "train_lighthouse")
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
SHAPE = {"vocab-size": 264, "dim": 48, "layers": 3, "heads": 6, "kv-heads": 2, "ffn-dim": 56}
# Lighthouse attention in two of the three layers, in two chunks, on subsequences of 48 entries.
LIGHTHOUSE = {"selection": "on", "seq_len": 64, "levels": 3, "pool": 2, "topk": 8, "topk_tile": 4, "dense_layers": "0"}
# More threads than these small models have work for only wait; waiting without spinning leaves busy machines their cores.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Without these mpirun refuses to run as root, as it would in a container.
os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
tests = []


# --- tests ----------------------------------------------------------------------------------------------------------


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


# --- starting programs ----------------------------------------------------------------------------------------------


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


def descendants(pid):
    """The process and all that it and its children started, also in sessions of their own."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # PID (NAME) STATE PARENT …; a name may hold spaces and brackets.
                parent = int(read_file(f"/proc/{entry}/stat").rpartition(b")")[2].split()[1])
            except OSError:
                continue  # it has ended
            children.setdefault(parent, []).append(int(entry))
    family = [pid]
    for process in family:
        family += children.get(process, [])
    return family


class Running:
    """A command that runs beside the test, with its output in files; `with` kills it, and what it started, should it still
    run then. `prepare` is called in its process before it starts."""

    def __init__(self, command, environment=None, prepare=lambda: None):
        self.command = command
        self.files = [tempfile.NamedTemporaryFile("w") for _ in range(2)]

        def start():
            # Ignored where the tests run in the background, or under nohup.
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            prepare()

        self.process = subprocess.Popen(command, stdout=self.files[0], stderr=self.files[1], env=environment,
                                        stdin=subprocess.DEVNULL, start_new_session=True,
                                        preexec_fn=start)

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        if self.process.poll() is None:
            for process in descendants(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
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
            raise Failure(f"{' '.join(self.command)}\nstill runs after {seconds} seconds; {self.said()[1]}") from None


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


def failing_disk(kind, call, count=1, below="out"):
    """The environment in which calls of the program on files below a directory fail, from that call on
    (dev/test/preload)."""
    return os.environ | {"LD_PRELOAD": os.path.join(ROOT, "build", "fail_io.so"), "FAIL_IO_BELOW": os.path.abspath(below),
                         "FAIL_IO_KIND": kind, "FAIL_IO_CALL": str(call), "FAIL_IO_FOR": str(count)}


# --- data -----------------------------------------------------------------------------------------------------------


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


# --- checkpoints and metrics ----------------------------------------------------------------------------------------


def checkpoint(step, out="out"):
    return os.path.join(out, f"step_{step:08d}")


def read_directory(path):
    return {name: read_file(os.path.join(path, name)) for name in sorted(os.listdir(path))}


def checkpoint_files(processes):
    """The names of the files of a checkpoint that so many processes wrote."""
    optimizer = [f"optimizer-{rank:05}-of-{processes:05}.safetensors" for rank in range(processes)]
    return sorted(["config.json", "manifest.json", "model.safetensors", "trainer.json", *optimizer])


CHECKPOINT_FILES = checkpoint_files(1)


def check_same_checkpoint(a, b, processes=1):
    a_files, b_files = read_directory(a), read_directory(b)
    check_equal(f"files of {a}", sorted(a_files), checkpoint_files(processes))
    check_equal(f"files of {b}", sorted(b_files), checkpoint_files(processes))
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


def checkpoints_left(out="out"):
    """The directories that hold a checkpoint, or its predecessor while it is replaced."""
    names = os.listdir(out) if os.path.exists(out) else []
    return sorted(name for name in names if name.startswith("step_") and not name.endswith(".tmp"))


def truncate(data):
    return data[:-1]


def flip_a_bit(data):
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1:]
