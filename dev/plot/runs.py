"""The metrics of runs, as train_lighthouse writes them: metrics.jsonl in a run's directory (--out)."""

import json
import os
import sys

# Packages that scripts/setup.sh --plot installs.
sys.path.append(os.path.join(os.path.dirname(__file__), "..", "..", ".deps", "plot"))


class RunError(Exception):
    """Bad input, said in one line."""


class Run:
    """A run's name and its steps, each a dictionary as in metrics.jsonl, with the tokens and hours until then and, where
    there was a validation, dense_loss."""

    def __init__(self, name, steps):
        self.name, self.steps = name, steps

    def column(self, key, x="step"):
        """[(x, value)] of the steps that have a value."""
        return [(step[x], step[key]) for step in self.steps if isinstance(step.get(key), (int, float))]

    def stages(self):
        """[(first step, last step)] of stage 1's parts: from the first step with selection to the last before the tail.
        A dense step with selection before and after it belongs to stage 1."""
        selected = [step["step"] for step in self.steps if step["selection"] == "on"]
        return [(self.steps[0]["step"], selected[-1])] if selected else []

    def dense_steps(self):
        """Steps of stage 1 that were dense in all layers."""
        return [step["step"] for first, last in self.stages() for step in self.steps
                if first <= step["step"] <= last and step["selection"] == "off"]


def parse_lines(path, lines):
    steps = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break  # being written
        try:
            step = json.loads(line)
            step["step"], step["selection"], step["ms"], step["tokens_per_second"]
        except (ValueError, TypeError, KeyError):
            raise RunError(f"{path}, line {number}: a step of train_lighthouse is expected, as in "
                           f'{{"step": 1, "selection": "on", "loss": …}}') from None
        steps.append(step)
    return steps


def find_metrics(path):
    """The file of a run that is given as its directory or as that file."""
    file = os.path.join(path, "metrics.jsonl") if os.path.isdir(path) else path
    if not os.path.isfile(file):
        raise RunError(f"{path}: a run's directory (its --out, with metrics.jsonl) or such a file is expected")
    return file


def read_run(path):
    file = find_metrics(path)
    with open(file, encoding="utf-8", errors="replace") as stream:
        steps = parse_lines(file, stream)
    if not steps:
        raise RunError(f"{file}: no step yet")
    tokens = seconds = 0.0
    for step in steps:
        seconds += step["ms"] / 1e3
        tokens += step["tokens_per_second"] * step["ms"] / 1e3
        step |= {"tokens": tokens, "hours": seconds / 3600}
        if "val_loss_dense" in step or ("val_loss" in step and step["selection"] == "off"):
            step["dense_loss"] = step["val_loss_dense"] if "val_loss_dense" in step else step["val_loss"]
    return Run(path, steps)


class Follower:
    """Hands out what changes in a run's metrics.jsonl."""

    def __init__(self, path):
        self.path, self.seen = path, []

    def look(self):
        """The steps that are new since the last look, or that a resumed run made again and all after them."""
        with open(self.path, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if line.endswith("\n")]
        pairs = zip(lines, self.seen)
        same = next((i for i, (line, seen) in enumerate(pairs) if line != seen), min(len(lines), len(self.seen)))
        self.seen = lines
        return parse_lines(self.path, lines[same:])


def name_runs(runs):
    """Shortens the runs' names to the parts of their paths in which they differ."""
    parts = [[part for part in os.path.normpath(run.name).split(os.sep) if part != "metrics.jsonl"] for run in runs]
    while len(parts) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(parts) > 1 and all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    for run, part in zip(runs, parts):
        run.name = os.sep.join(part if len(runs) > 1 else part[-1:])
    return runs
