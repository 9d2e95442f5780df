#!/usr/bin/env python3
"""Compares a two-stage run (Lighthouse attention, then a dense tail) with a dense one: final losses, time, the switch.

DENSE and TWO_STAGE are metrics.jsonl files of train_lighthouse, of runs whose other options are the same. Time is that
of the steps; validations and checkpoints are not in it.
"""

import argparse
import itertools
import json
import math
import sys


class Run:
    def __init__(self, path):
        with open(path) as file:
            # A value that is not finite is null there.
            lines = [{name: math.nan if value is None else value for name, value in json.loads(line).items()}
                     for line in file]
        if not lines:
            sys.exit(f"error: {path} holds no steps")
        self.steps = [line["step"] for line in lines]
        self.losses = [line["loss"] for line in lines]
        self.minutes = list(itertools.accumulate(line["ms"] / 6e4 for line in lines))
        # The number of lines from stage 1, which is trained with selection; they come first.
        self.stage1 = sum(line.get("selection") == "on" for line in lines)
        # Validation losses as (index of the line, loss): with selection (in stage 1), and with dense attention.
        self.selection_validation = [(i, line["val_loss"]) for i, line in enumerate(lines[:self.stage1])
                                     if "val_loss" in line]
        self.dense_validation = [(i, line[name]) for i, line in enumerate(lines)
                                 if (name := "val_loss_dense" if i < self.stage1 else "val_loss") in line]

    def times(self, minutes):
        return [time / minutes for time in self.minutes]

    def smooth(self, window):
        """For each step the mean of the last `window` losses of the same stage."""
        means = []
        for i in range(len(self.losses)):
            first = max(i + 1 - window, self.stage1 if i >= self.stage1 else 0)
            means.append(sum(self.losses[first:i + 1]) / (i + 1 - first))
        return means


def draw_run(axes, x, run, window, name, color):
    axes.plot(x, run.losses, color=color, alpha=0.2, linewidth=0.6)
    axes.plot(x, run.smooth(window), color=color, linewidth=1.2, label=f"{name}: training")
    for losses, style, what in ((run.dense_validation, "o-", "dense"), (run.selection_validation, "x", "selection")):
        if losses:
            axes.plot([x[i] for i, _ in losses], [loss for _, loss in losses], style, color=color,
                      markersize=4, linewidth=0.6, label=f"{name}: validation, {what}")
    if run.stage1 > 0:
        axes.axvline(x[run.stage1 - 1], color=color, linestyle=":", linewidth=1, label="switch to dense attention")


def loss_range(runs, window):
    """The loss axis: from the lowest loss to the highest smoothed loss after a tenth of the steps, or at the switch."""
    values, losses = [], []
    for run in runs:
        smooth = run.smooth(window)
        values += smooth[len(smooth) // 10:] + run.losses[run.stage1:run.stage1 + window] * (run.stage1 > 0)
        losses += [loss for _, loss in run.dense_validation[-1:]]
    low, high = min(values + losses), max(values)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def draw(path, dense, two_stage, window, title):
    """Draws losses against steps (left) and against time (right)."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    unit, minutes = ("hours", 60) if dense.minutes[-1] >= 120 else ("minutes", 1)
    for run, name, color in ((dense, "dense", "tab:gray"), (two_stage, "two-stage", "tab:blue")):
        draw_run(panels[0], run.steps, run, window, name, color)
        draw_run(panels[1], run.times(minutes), run, window, name, color)
    panels[0].set(xlabel="step", ylabel="loss (nats per token)", ylim=loss_range((dense, two_stage), window))
    panels[1].set(xlabel=f"{unit} of training")
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8, loc="upper right")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def print_run(name, run):
    loss = f"{run.dense_validation[-1][1]:.4f}" if run.dense_validation else "n/a"
    print(f"{name:10} {run.steps[-1]} steps in {run.minutes[-1]:.1f} minutes; dense validation loss at the end {loss}")


def print_switch(run, window):
    """Prints how far the loss rises at the switch above the smoothed loss at the end of stage 1, and after how many
    steps the mean over a window is back at that loss."""
    before = run.smooth(window)[run.stage1 - 1]
    after = run.losses[run.stage1:]
    means = [sum(after[i:i + window]) / window for i in range(len(after) - window + 1)]
    back = next((i for i, mean in enumerate(means) if mean <= before), None)
    spike = max(after[:window])
    recovery = "not recovered" if back is None else f"recovered after {back} steps"
    print(f"switch     after {run.steps[run.stage1 - 1]} steps and {run.minutes[run.stage1 - 1]:.1f} minutes: "
          f"training loss {before:.4f} (mean of {window} steps), then at most {spike:.4f}, {spike - before:+.4f}; "
          f"{recovery}")
    stage1 = [loss for i, loss in run.dense_validation if i < run.stage1]
    if stage1:
        print(f"           dense validation loss at the end of stage 1 {stage1[-1]:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", metavar="DENSE.jsonl")
    parser.add_argument("two_stage", metavar="TWO_STAGE.jsonl")
    parser.add_argument("--window", metavar="STEPS", type=int, default=20, help="of smoothing (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw the losses (needs matplotlib)")
    parser.add_argument("--title", default="Two-stage and dense training", help="of the picture")
    arguments = parser.parse_args()
    dense, two_stage = Run(arguments.dense), Run(arguments.two_stage)
    if dense.stage1 > 0:
        sys.exit(f"error: {arguments.dense} has steps with selection; a dense run is expected")
    if not 0 < two_stage.stage1 < len(two_stage.steps):
        sys.exit(f"error: {arguments.two_stage} does not go from steps with selection to steps without")
    print_run("dense", dense)
    print_run("two-stage", two_stage)
    print(f"           the dense run takes {dense.minutes[-1] / two_stage.minutes[-1]:.2f} times as long")
    print_switch(two_stage, arguments.window)
    if arguments.plot:
        draw(arguments.plot, dense, two_stage, arguments.window, arguments.title)


if __name__ == "__main__":
    main()
