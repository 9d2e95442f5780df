#!/usr/bin/env python3
"""Compares the losses of two runs, step by step: exit code 1 if they differ by more than the tolerance anywhere.

A and B are metrics.jsonl files of train_lighthouse or of train.py.
"""

import argparse
import json
import sys


def read_losses(path):
    with open(path) as file:
        return {entry["step"]: entry["loss"] for entry in map(json.loads, file)}


def plot(path, runs):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    for name, losses in runs.items():
        pyplot.plot(losses.keys(), losses.values(), label=name, linewidth=1)
    pyplot.xlabel("step")
    pyplot.ylabel("loss (nats per token)")
    pyplot.legend()
    pyplot.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", metavar="A.jsonl")
    parser.add_argument("b", metavar="B.jsonl")
    parser.add_argument("--from-step", metavar="N", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--tolerance", metavar="X", type=float, default=0.01,
                        help="largest relative difference of a step's losses (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw both curves (needs matplotlib)")
    arguments = parser.parse_args()
    a, b = read_losses(arguments.a), read_losses(arguments.b)
    steps = sorted(step for step in a.keys() & b.keys() if step >= arguments.from_step)
    if not steps:
        sys.exit(f"error: the runs have no step from {arguments.from_step} on in common")
    differences = {step: abs(a[step] - b[step]) / abs(b[step]) for step in steps}
    worst = max(differences, key=differences.get)
    print(f"{len(steps)} steps, {steps[0]} to {steps[-1]}: relative difference of the loss at most "
          f"{differences[worst]:.3g} (step {worst}: {a[worst]:.5f} and {b[worst]:.5f}), "
          f"mean {sum(differences.values()) / len(steps):.3g}; last {a[steps[-1]]:.5f} and {b[steps[-1]]:.5f}")
    if arguments.plot:
        plot(arguments.plot, {arguments.a: a, arguments.b: b})
    # Written so that a loss that is no number fails.
    if not all(difference <= arguments.tolerance for difference in differences.values()):
        sys.exit(f"error: that is above the tolerance of {arguments.tolerance:g}")


if __name__ == "__main__":
    main()
