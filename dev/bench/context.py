#!/usr/bin/env python3
"""Measures what a training step costs as the context grows, with dense attention, with Lighthouse attention in all but
four layers, and in all layers.

Runs the step benchmark for each length and variant, prints one table and draws tokens/s and memory in use. Each result is
added to results.jsonl in --out when it is there, and a length and variant found in it is not measured again: a killed run
goes on where it was, and --lengths and --variants split the work over several runs. What a GPU has no room for is a result
too.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
LENGTHS = [32768, 65536, 98304, 131072, 262144, 524288, 1048576]
# The variants' names in the table and the picture, and their colors.
VARIANTS = {"dense": "dense", "lighthouse": "Lighthouse,\nfour layers dense", "lighthouse-all": "Lighthouse\nin all layers"}
COLORS = {"dense": "dimgray", "lighthouse": "tab:blue", "lighthouse-all": "tab:red"}
# With longer sequences the four dense layers alone take a minute per step.
LONGEST_WITH_DENSE_LAYERS = 524288
# The fields that are kept of the step benchmark's result.
FIELDS = ["gpu", "model", "recompute", "ms", "optimizer_ms", "tokens_per_second", "planned_gib", "memory_gib"]


# --- measuring -------------------------------------------------------------------------------------------------------


def geometry(variant, tokens):
    """Levels, pool and K. Published values: K 1536 at 98304 tokens with dense layers; 4 levels and K 4096 at 1048576."""
    if variant == "lighthouse":
        return 3, 4, 1536 if tokens == 98304 else 2048
    return (4, 4, 4096) if tokens >= 524288 else (3, 4, 2048)


def step_options(variant, tokens):
    options = ["--seq-len", str(tokens), "--recompute", "auto"]
    if variant == "dense":
        return [*options, "--selection", "off"]
    for name, value in zip(("--levels", "--pool", "--topk"), geometry(variant, tokens)):
        options += [name, str(value)]
    return [*options, "--selection", "on", "--dense-layers", "none" if variant == "lighthouse-all" else "auto"]


def runs_to_make(arguments):
    """Pairs (tokens, variant) to measure, the shortest lengths first."""
    longest = {"dense": arguments.dense_up_to, "lighthouse": LONGEST_WITH_DENSE_LAYERS}
    runs = [(tokens, variant) for tokens in sorted(set(arguments.lengths)) for variant in VARIANTS
            if variant in arguments.variants and tokens <= longest.get(variant, tokens)]
    if not runs:
        sys.exit(f"error: nothing to measure: dense goes up to {arguments.dense_up_to} tokens (--dense-up-to), "
                 f"lighthouse up to {LONGEST_WITH_DENSE_LAYERS}")
    return runs


def measure(step, tokens, variant):
    """The step benchmark's result for one run, or that it does not fit; any other failure ends the script."""
    command = [step, *step_options(variant, tokens)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"error: cannot run {step}: {error.strerror}; make DEVICE=cuda tools builds it (or set --step)")
    result = {"variant": variant, "tokens": tokens}
    if variant != "dense":
        result["geometry"] = geometry(variant, tokens)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode == 1 and errors and "out of memory" in errors[-1]:
        gpu = re.search(r"out of memory on (.*?): ", errors[-1])
        return result | {"gpu": gpu and gpu[1], "fits": False, "error": errors[-1].removeprefix("error: ")}
    if done.returncode != 0:
        said = errors[-1].removeprefix("error: ") if errors else " ".join(done.stderr.split()[-40:]) or "no message"
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}: {said}")
    try:
        said = json.loads(done.stdout.splitlines()[-1])
        return result | {name: said[name] for name in FIELDS} | {"fits": True}
    except (IndexError, KeyError, TypeError, ValueError):
        sys.exit(f"error: {' '.join(command)} does not end with its result as JSON; is it of this version?")


def measure_all(runs, step, path):
    """Measures the runs that the file lacks, adds their results to it, and returns all its results."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    results = read_results([path]) if os.path.exists(path) else {}
    with open(path, "a") as file:
        for tokens, variant in runs:
            known = (tokens, variant) in results
            if not known:
                result = measure(step, tokens, variant)
                # Checked before the result is written: a file with results of several GPUs cannot be drawn.
                results[tokens, variant] = result
                only_gpu(results)
                file.write(json.dumps(result) + "\n")
                file.flush()
            print(f"{variant}, {tokens} tokens: {describe(results[tokens, variant])}{' (known)' if known else ''}",
                  flush=True)
    print()
    return results


def read_results(paths):
    """A dictionary (tokens, variant) → result; of several results the last one."""
    results = {}
    for path in paths:
        try:
            with open(path) as file:
                for number, line in enumerate(file, 1):
                    result = json.loads(line)
                    results[result["tokens"], result["variant"]] = result
        except OSError as error:
            sys.exit(f"error: cannot read {path}: {error.strerror}")
        except (KeyError, TypeError, ValueError):
            sys.exit(f"error: {path}, line {number} is no result; take the line out")
    return results


def only_gpu(results):
    gpus = sorted({result["gpu"] for result in results.values() if result["gpu"]})
    if len(gpus) > 1:
        sys.exit(f"error: results on {' and '.join(gpus)} cannot be compared; use an --out for each")
    return gpus[0] if gpus else "unknown GPU"


# --- the table -------------------------------------------------------------------------------------------------------


def describe(result):
    if not result["fits"]:
        return f"does not fit: {result['error']}"
    return (f"{result['ms']:.1f} ms, {result['tokens_per_second'] / 1e3:.1f}k tokens/s, "
            f"{result['memory_gib']:.1f} GiB")


def attention(result):
    name = VARIANTS[result["variant"]].replace("\n", " ")
    return f"{name} ({','.join(map(str, result['geometry']))})" if "geometry" in result else name


def in_order(results):
    order = list(VARIANTS)
    return sorted(results.values(), key=lambda result: (result["tokens"], order.index(result["variant"])))


def title(results):
    models = {result["model"] for result in results.values() if result["fits"]}
    model = f"{', '.join(sorted(models))} model" if models else "nothing fits"
    return f"{only_gpu(results)}, {model}: forward and backward of one sequence"


def print_table(results):
    print(title(results))
    updates = [result["optimizer_ms"] for result in results.values() if result["fits"]]
    if updates:
        print(f"(an optimizer step: {statistics.median(updates):.1f} ms more)")
    print("\n| tokens | attention | recompute | ms | tokens/s | GiB in use |\n|---|---|---|---|---|---|")
    for result in in_order(results):
        cells = "| does not fit | | |"
        if result["fits"]:
            cells = (f"{result['recompute']} | {result['ms']:.1f} | {result['tokens_per_second'] / 1e3:.1f}k | "
                     f"{result['memory_gib']:.2f} |")
        print(f"| {result['tokens']} | {attention(result)} | {cells}")


# --- the picture -----------------------------------------------------------------------------------------------------


def import_pyplot():
    """Imports matplotlib, which only the picture needs."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("error: the picture needs matplotlib: pip install matplotlib (or --no-picture)")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def name_beside(axes, x, y, name, color, level):
    axes.annotate(name, (x, y), (8, 0), textcoords="offset points", color=color, va="center")


def name_above(axes, x, y, name, color, level):
    """Writes the name above all lines, each at its own height, with a thin line to the point. For lines that are too
    close to each other for names beside them."""
    thin_line = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4, "relpos": (1, 0)}
    axes.annotate(name.replace("\n", " "), (x, y), (x, 0.82 + 0.06 * level), textcoords=axes.get_xaxis_transform(),
                  color=color, ha="right", arrowprops=thin_line)


def draw_panel(axes, results, field, unit, put_name):
    values = []
    for level, (variant, name) in enumerate(VARIANTS.items()):
        line = [result for result in in_order(results) if result["variant"] == variant and result["fits"]]
        if not line:
            continue
        x, y = [result["tokens"] for result in line], [result[field] / unit for result in line]
        axes.plot(x, y, color=COLORS[variant], linewidth=1.8)
        faces = ["white" if result["recompute"] != "none" else COLORS[variant] for result in line]
        axes.scatter(x, y, s=28, color=faces, edgecolors=COLORS[variant], linewidths=1.5, zorder=3)
        put_name(axes, x[-1], y[-1], name, COLORS[variant], level)
        values += y
    low, high = min(values) / 1.15, max(values) * 1.15
    lengths = sorted({result["tokens"] for result in results.values()})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{tokens / 2**10:g}K" if tokens < 2**20 else f"{tokens / 2**20:g}M" for tokens in lengths])
    ticks = [digit * 10**power for power in range(-3, 6) for digit in (1, 2, 3, 5, 7)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return low, high


def draw(pyplot, path, results):
    """Draws tokens/s (left) and memory (right) against the length."""
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    shortest, longest = min(results)[0], max(results)[0]
    low, high = draw_panel(panels[0], results, "tokens_per_second", 1e3, name_beside)
    panels[0].set(title="thousand tokens/s", xlim=(shortest / 1.15, 2.2 * longest), ylim=(low, high))
    low, high = draw_panel(panels[1], results, "memory_gib", 1, name_above)
    panels[1].set(title="GiB in use (hollow: part of the activations is recomputed)",
                  xlim=(shortest / 1.15, 1.15 * longest), ylim=(low, high * (high / low) ** 0.3))
    for axes in panels:
        axes.set_xlabel("context (tokens)")
    figure.suptitle(title(results))
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", metavar="PROGRAM", default=os.path.join(ROOT, "build", "cuda", "dev", "bench", "step"),
                        help="the step benchmark (default: build/cuda/dev/bench/step)")
    parser.add_argument("--lengths", metavar="TOKENS", type=int, nargs="+", default=LENGTHS,
                        help=f"(default: {' '.join(map(str, LENGTHS))})")
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS),
                        help="lighthouse has the default dense layers, lighthouse-all none (default: all three)")
    parser.add_argument("--dense-up-to", metavar="TOKENS", type=int, default=131072,
                        help="longest context of dense, whose time grows with its square (default: %(default)s)")
    parser.add_argument("--draw", metavar="RESULTS.jsonl", nargs="+", help="measure nothing, show these results")
    parser.add_argument("--out", metavar="DIR", help="(default: out/context, or where the first of --draw is)")
    parser.add_argument("--no-picture", action="store_true", help="only the table, without matplotlib")
    arguments = parser.parse_args()
    # Imported before the runs, which take minutes, so that it is known to be there.
    pyplot = None if arguments.no_picture else import_pyplot()
    if arguments.draw:
        results = read_results(arguments.draw)
        if not results:
            sys.exit(f"error: no results in {', '.join(arguments.draw)}")
        out = arguments.out or os.path.dirname(arguments.draw[0]) or "."
    else:
        out = arguments.out or os.path.join("out", "context")
        results = measure_all(runs_to_make(arguments), arguments.step, os.path.join(out, "results.jsonl"))
    print_table(results)
    if pyplot and any(result["fits"] for result in results.values()):
        os.makedirs(out, exist_ok=True)
        picture = os.path.join(out, "context.png")
        draw(pyplot, picture, results)
        print(f"\n{picture}")


if __name__ == "__main__":
    main()
