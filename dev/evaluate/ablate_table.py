"""The table of runs that ablate.py reads (its docstring describes the format), and where their files are."""

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys

# Options of the table itself; all others are train_lighthouse's. --steps, those of the whole run, is both.
OWN = ("stage1-steps", "seeds")
# What ablate.py says to train_lighthouse.
TAKEN = ("out", "resume", "seed", "plan", "verify-checkpoint", "help")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


class AblationError(Exception):
    """Something wrong with the table, the runs or the command, in words for the user."""


class ArgumentParser(argparse.ArgumentParser):
    """Ends with one line and exit code 1, as the program does."""

    def error(self, message):
        sys.exit(f"error: {message} (--help lists the options)")


@dataclasses.dataclass
class Run:
    variant: str
    seed: str
    options: dict  # of stage 1: train_lighthouse's, without the dashes
    tail: dict  # what else the dense tail has
    stage1_steps: int  # 0: dense from the first step to the last
    steps: int
    directory: str

    def __str__(self):
        return f"{self.variant} seed {self.seed}"

    @property
    def dense(self):
        return self.options["selection"] == "off"

    def stages(self):
        """(name, options, the step it ends with) of each."""
        if self.stage1_steps > 0:
            yield "stage 1", self.options, self.stage1_steps
        if self.steps > self.stage1_steps:
            yield "the tail" if self.stage1_steps else "dense", self.options | {"selection": "off"} | self.tail, self.steps

    def stage1_key(self):
        """Runs of the same key have the same first steps, as long as both are in stage 1. A learning rate that falls
        towards the end of stage 1 depends on where that is."""
        constant = self.options.get("lr-schedule", "constant") == "constant"
        return self.seed, tuple(sorted(self.options.items())), 0 if constant else self.stage1_steps

    def description(self):
        return {"options": self.options, "tail": self.tail, "stage1_steps": self.stage1_steps, "steps": self.steps}

    def newest_step(self):
        """The step of the newest checkpoint, or 0."""
        try:
            with open(os.path.join(self.directory, "latest")) as file:
                return int(file.read().strip().removeprefix("step_"))
        except (FileNotFoundError, ValueError):
            return 0

    def checkpoint(self, step):
        return os.path.join(self.directory, f"step_{step:08d}")


def read_lines(path):
    """(where, name, text) of each entry; an indented line goes on with the one before."""
    entries = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where, text = f"{path}, line {number}", re.sub(r"(^|\s)#.*", "", line.rstrip())
            name, colon, rest = text.partition(":")
            if not text.strip():
                continue
            if text[0].isspace():
                if not entries:
                    raise AblationError(f"{where}: an indented line goes on with the one before, and there is none")
                entries[-1][2] += " " + text
            elif not colon or not NAME.fullmatch(name):
                raise AblationError(f"{where}: \"{text}\" is not \"NAME: --option value …\", with a name of letters, digits "
                                    f"and _ . + -")
            else:
                entries.append([where, name, rest])
    return entries


def parse_options(where, words):
    options = {}
    for name, value in zip(words[0::2], [*words[1::2], None]):
        if not name.startswith("--") or value is None or value.startswith("--"):
            raise AblationError(f"{where}: \"{name}\": options are pairs, --option value")
        if name[2:] in TAKEN:
            raise AblationError(f"{where}: {name} is not for the table" + (", --seeds 1,2 is" if name == "--seed" else ""))
        options[name[2:]] = value
    return options


def parse_entry(where, text):
    """Options of stage 1, and those of the tail, which stand behind a |."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise AblationError(f"{where}: {error}") from None
    bar = words.index("|") if "|" in words else len(words)
    options, tail = parse_options(where, words[:bar]), parse_options(where, words[bar + 1:])
    wrong = next((name for name in (*OWN, "steps") if name in tail), None)
    if wrong:
        raise AblationError(f"{where}: --{wrong} stands before the |, and counts for the whole run")
    return options, tail


def steps_of(where, options, name):
    text = options.pop(name, None)
    if text is None or not re.fullmatch(r"[1-9]\d*", text):
        raise AblationError(f"{where}: --{name} {text}: a number of steps is expected" if text else
                            f"{where}: --{name} is missing" + (" (--steps counts both stages)" if name == "steps" else ""))
    return int(text)


def runs_of(where, variant, options, tail, out):
    """A run a seed."""
    dense = options.setdefault("selection", "on") == "off"
    seeds = options.pop("seeds", "1").split(",")
    if not all(re.fullmatch(r"\d+", seed) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise AblationError(f"{where}: --seeds {','.join(seeds)}: different numbers are expected, as in --seeds 1,2,3")
    steps = steps_of(where, options, "steps")
    # Dense from scratch has no stages, unless its tail has options of its own.
    if dense and not tail:
        options.pop("stage1-steps", None)
        stage1_steps = 0
    else:
        stage1_steps = steps_of(where, options, "stage1-steps")
    if stage1_steps > steps:
        raise AblationError(f"{where}: --stage1-steps {stage1_steps} is more than --steps {steps}, which counts both stages")
    return [Run(variant, seed, dict(options), dict(tail), stage1_steps, steps, os.path.join(out, variant, f"seed_{seed}"))
            for seed in seeds]


def read_table(path, out):
    """All runs, the first seed of each variant first."""
    entries = read_lines(path)
    common, common_tail = {}, {}
    if entries and entries[0][1] == "common":
        where, _, text = entries.pop(0)
        common, common_tail = parse_entry(where, text)
    variants = []
    for where, name, text in entries:
        if name in ("common", "lock") or name in [runs[0].variant for runs in variants]:
            raise AblationError(f"{where}: {name} " + ("comes first, once" if name == "common" else "cannot be used again"))
        options, tail = parse_entry(where, text)
        variants.append(runs_of(where, name, common | options, common_tail | tail, out))
    if not variants:
        raise AblationError(f"{path} has no variant: a line \"NAME: --option value …\"")
    most = max(len(runs) for runs in variants)
    return [runs[i] for i in range(most) for runs in variants if i < len(runs)]


def check_unchanged(run):
    """Records what the run is when it is first met; afterwards it has to be the same."""
    path = os.path.join(run.directory, "run.json")
    if not os.path.exists(path):
        os.makedirs(run.directory, exist_ok=True)
        with open(path + ".tmp", "w") as file:
            json.dump(run.description(), file, indent=1)
        os.replace(path + ".tmp", path)
    with open(path) as file:
        recorded = json.load(file)
    if recorded != run.description():
        raise AblationError(f"{run}: the table says something else than when this run began ({path}); give the variant "
                            f"another name, or remove {run.directory}")
