#!/usr/bin/env python3
"""Draws the curves of runs: one picture, or one HTML page that needs no other file.

    dev/plot/plot.py RUN… [--out FILE.png|.svg|.pdf|.html] [--x step|tokens|hours] [--smooth STEPS]

RUN is a run's directory (its --out) or its metrics.jsonl. The losses are on top: training (thin: each step; thick: the mean
over --smooth steps), validation as trained (rings) and dense (dots); then learning rate, gradient norm, tokens a second and
memory. Stage 1 is shaded, its dense steps are ticks at the lower edge of the losses. Needs matplotlib, which
scripts/setup.sh --plot installs.
"""

import argparse
import html
import io
import statistics
import sys

from runs import RunError, name_runs, read_run

POINTS = 2000  # of a curve, at most: more than a picture can show
LABELS = {"step": "step", "tokens": "tokens", "hours": "hours of training"}
SMALL = (("lr", "learning rate"), ("grad_norm", "gradient norm"), ("tokens_per_second", "tokens per second"),
         ("memory_gib", "memory, GiB"))
# Column of the page's table: (heading, key of a step, how it is written)
COLUMNS = (("step", "step", "{}"), ("hours", "hours", "{:.2f}"), ("tokens", "tokens", "{:.3g}"),
           ("training loss", "loss", "{:.4f}"), ("validation, as trained", "val_loss", "{:.4f}"),
           ("validation, dense", "dense_loss", "{:.4f}"), ("tokens per second", "tokens_per_second", "{:.0f}"))


# --- numbers ----------------------------------------------------------------------------------------------------------


def smooth(points, window):
    """Means over a window that ends at each point; the first points have what is there."""
    means, total = [], 0.0
    for i, (x, y) in enumerate(points):
        total += y - (points[i - window][1] if i >= window else 0)
        means.append((x, total / min(i + 1, window)))
    return means


def thin(points):
    """At most POINTS means of neighbours."""
    size = max(1, -(-len(points) // POINTS))
    groups = [points[i:i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], statistics.fmean(y for _, y in group)) for group in groups]


# --- the picture ------------------------------------------------------------------------------------------------------


def curve(axes, points, *style, **options):
    if points:
        axes.plot(*zip(*points), *style, **options)


def mark_stages(axes, run, x, color):
    at = {step["step"]: step[x] for step in run.steps}
    for first, last in run.stages():
        axes.axvspan(at[first], at[last], color=color, alpha=0.06, linewidth=0)
    ticks = [at[step] for step in run.dense_steps()]
    axes.vlines(ticks, 0, 0.02, color=color, alpha=0.4, linewidth=0.6, transform=axes.get_xaxis_transform())


def draw_losses(axes, run, x, window, color):
    mark_stages(axes, run, x, color)
    losses = run.column("loss", x)
    curve(axes, thin(losses), "-", color=color, alpha=0.25, linewidth=0.6)
    curve(axes, thin(smooth(losses, window)), "-", color=color, linewidth=1.6, label=run.name)
    curve(axes, run.column("val_loss", x), "o", color=color, markersize=4.5, markerfacecolor="none")
    curve(axes, run.column("dense_loss", x), "o", color=color, markersize=3.5)


def draw(runs, x, window):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker
    from matplotlib.lines import Line2D
    places = [["loss"] * 2, ["loss"] * 2, ["lr", "grad_norm"], ["tokens_per_second", "memory_gib"]]
    figure, panels = pyplot.subplot_mosaic(places, figsize=(13, 11), layout="constrained", sharex=True)
    colors = ["black", *(color for color in matplotlib.colormaps["tab10"].colors)]
    for i, run in enumerate(runs):
        color = colors[i % len(colors)]
        draw_losses(panels["loss"], run, x, window, color)
        for key, _ in SMALL:
            curve(panels[key], thin(run.column(key, x)), "-", color=color, linewidth=0.9)
    panels["loss"].set(ylabel="loss, nats per token")
    panels["loss"].tick_params(labelbottom=True)
    for key, label in SMALL:
        panels[key].set(ylabel=label)
    for key in ("loss", "grad_norm"):
        panels[key].set(yscale="log")
        panels[key].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if key == "loss" else (1, 2, 5)))
        panels[key].yaxis.set_major_formatter("{x:g}")
        panels[key].yaxis.set_minor_formatter(ticker.NullFormatter())
    for key in ("tokens_per_second", "memory_gib"):
        highest = max((value for run in runs for _, value in run.column(key)), default=1)
        panels[key].set(xlabel=LABELS[x], ylim=(0, 1.08 * highest))
    for axes in panels.values():
        axes.grid(alpha=0.3)
    kinds = [Line2D([], [], color="gray", linewidth=1.6, label=f"training, mean of {window} steps"),
             Line2D([], [], color="gray", marker="o", markerfacecolor="none", linestyle="", label="validation as trained"),
             Line2D([], [], color="gray", marker="o", markersize=4, linestyle="", label="validation, dense"),
             Line2D([], [], color="gray", marker="|", linestyle="", label="dense step of stage 1 (shaded)")]
    handles = panels["loss"].get_legend_handles_labels()[0]
    figure.legend(handles=handles + kinds, loc="outside upper center", ncols=4, frameon=False)
    return figure


# --- the page ---------------------------------------------------------------------------------------------------------

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
svg { width: 100%; height: auto } table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }"""


def last_values(run):
    """The last value of each column of the table."""
    for _, key, form in COLUMNS:
        values = [step[key] for step in run.steps if isinstance(step.get(key), (int, float))]
        yield form.format(values[-1]) if values else ""


def page(runs, figure):
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    rows = [[run.name, *last_values(run)] for run in runs]
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in ("run", *(column[0] for column in COLUMNS)))
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = html.escape(", ".join(run.name for run in runs))
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
            f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n<table><tr>{head}</tr>\n{body}</table>\n"
            f"{svg[svg.index('<svg'):]}</body></html>\n")


def write(path, runs, figure):
    if path.endswith(".html"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(page(runs, figure))
    else:
        figure.savefig(path, dpi=110)


def positive(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: a number of steps from 1 on is expected")
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--out", metavar="FILE", default="curves.png",
                        help="ends in .png, .svg, .pdf or .html (default: %(default)s)")
    parser.add_argument("--x", choices=LABELS, default="step", help="what the curves run over (default: %(default)s)")
    parser.add_argument("--smooth", metavar="STEPS", type=positive, default=50, help="(default: %(default)s)")
    arguments = parser.parse_args()
    try:
        if not arguments.out.endswith((".png", ".svg", ".pdf", ".html")):
            raise RunError(f"--out {arguments.out}: a name that ends in .png, .svg, .pdf or .html is expected")
        runs = name_runs([read_run(path) for path in arguments.runs])
        write(arguments.out, runs, draw(runs, arguments.x, arguments.smooth))
    except ImportError:
        print("error: matplotlib is missing: scripts/setup.sh --plot installs it", file=sys.stderr)
        return 1
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {len(runs)} run{'s' * (len(runs) > 1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
