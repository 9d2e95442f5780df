"""What ablate.py reports of its runs: a table, in Markdown and CSV, and a picture."""

import csv
import json
import math
import os
import statistics

from ablate_table import AblationError

WINDOW = 50  # steps that a training loss is the mean of
PEAK = 10  # steps that the spike's peak is the mean of
POINT_COLUMNS = ("variant", "seed", "steps", "step", "attention", "loss_as_trained", "loss_dense", "seconds")
# Column of the table: (heading, name in the CSV, how a value is written)
COLUMNS = (
    ("stage 1: loss as trained", "stage1_loss_as_trained", "{:.4f}"),
    ("stage 1: dense loss", "stage1_loss_dense", "{:.4f}"),
    ("dense loss at the end", "loss_dense", "{:.4f}"),
    ("spike", "spike", "{:+.3f}"),
    ("back after", "recovery_steps", "{:.0f}"),
    ("stage 1, s", "stage1_seconds", "{:.0f}"),
    ("tail, s", "tail_seconds", "{:.0f}"),
    ("whole, s", "seconds", "{:.0f}"),
)
LEGEND = (f"±: standard deviation over seeds. Losses: of validation, in nats per token. Spike: the training loss after the "
          f"switch, at its highest over {PEAK} of the first {WINDOW} steps, minus the mean of the last {WINDOW} steps with "
          f"selection; back after: the steps until the mean of {WINDOW} is at that again (no figure: not within the run). "
          f"Seconds: of training steps, without validations and checkpoints.")


# --- a run's curve ----------------------------------------------------------------------------------------------------


class Curve:
    """What a run's validations gave, and its switch to dense attention."""

    def __init__(self, variant, seed, steps):
        self.variant, self.seed, self.steps = variant, seed, steps
        # (step, seconds of training, loss as trained or None, dense loss or None), of stage 1 and of dense steps
        self.stage1, self.dense = [], []
        self.seconds = 0  # of all steps that were made
        self.spike = self.recovery = None

    @property
    def points(self):
        return self.stage1 + self.dense

    @property
    def finished(self):
        return bool(self.points) and self.points[-1][0] >= self.steps

    def numbers(self):
        """By name in the CSV; None: not known, or there is no such thing."""
        stage1 = self.stage1[-1] if self.stage1 else (None, None, None, None)
        seconds = self.points[-1][1]
        return {"stage1_loss_as_trained": stage1[2], "stage1_loss_dense": stage1[3], "loss_dense": self.points[-1][3],
                "spike": self.spike, "recovery_steps": self.recovery, "stage1_seconds": stage1[1],
                "tail_seconds": seconds - (stage1[1] or 0), "seconds": seconds}


def read_metrics(path):
    """Lines of metrics.jsonl; a last one that is being written is left out. Validation losses that are not finite, null
    there, are nan."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    for line in lines:
        line |= {name: math.nan for name in ("val_loss", "val_loss_dense") if line.get(name, 0) is None}
    return lines


def read_curve(run):
    curve = Curve(run.variant, run.seed, run.steps)
    selected, tail, seconds = [], [], 0.0
    for line in read_metrics(os.path.join(run.directory, "metrics.jsonl")):
        stage1 = not run.dense and line["step"] <= run.stage1_steps
        seconds += line["ms"] / 1e3
        if line["loss"] is not None and not (stage1 and line["selection"] == "off"):
            (selected if stage1 else tail).append(line["loss"])
        if "val_loss" in line:
            dense = line.get("val_loss_dense", None if stage1 else line["val_loss"])
            (curve.stage1 if stage1 else curve.dense).append((line["step"], seconds, line["val_loss"], dense))
    if selected and tail:
        curve.spike, curve.recovery = find_spike(selected, tail)
    return curve


def running_means(losses, window):
    return [statistics.fmean(losses[i:i + window]) for i in range(len(losses) - window + 1)]


def find_spike(selected, tail):
    """How far the training loss rises at the switch over the mean of the last steps with selection, and after how many
    steps the mean of as many is back at that; None: not yet."""
    before = statistics.fmean(selected[-WINDOW:])
    peak = max(running_means(tail[:WINDOW], min(PEAK, len(tail))))
    means = running_means(tail, min(WINDOW, len(tail)))
    return peak - before, next((i for i, mean in enumerate(means) if mean <= before), None)


def read_points(path):
    """The curves of a points.csv."""
    curves = {}
    with open(path, newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                key = row["variant"], row["seed"]
                curve = curves.setdefault(key, Curve(*key, int(row["steps"])))
                losses = [float(row[name]) if row[name] else None for name in ("loss_as_trained", "loss_dense")]
                points = curve.dense if row["attention"] == "dense" else curve.stage1
                points.append((int(row["step"]), float(row["seconds"]), *losses))
            except (KeyError, TypeError, ValueError) as error:
                raise AblationError(f"{path}, line {number}: the columns {','.join(POINT_COLUMNS)} are expected "
                                    f"({error})") from None
    return list(curves.values())


def write_points(path, curves):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(POINT_COLUMNS)
        for curve in curves:
            for attention, points in (("selection", curve.stage1), ("dense", curve.dense)):
                for step, seconds, *losses in points:
                    writer.writerow([curve.variant, curve.seed, curve.steps, step, attention,
                                     *("" if loss is None else f"{loss:.6f}" for loss in losses), f"{seconds:.1f}"])


def cut(curves, step):
    """The curves as if the runs had ended there, without those of shorter runs. With a constant learning rate a run is
    until there what a shorter one is."""
    curves = [curve for curve in curves if curve.steps >= step]
    for curve in curves:
        curve.stage1 = [point for point in curve.stage1 if point[0] <= step]
        curve.dense = [point for point in curve.dense if point[0] <= step]
        curve.steps = step
    return [curve for curve in curves if curve.points]


# --- the table --------------------------------------------------------------------------------------------------------


def by_variant(curves):
    variants = {}
    for curve in curves:
        variants.setdefault(curve.variant, []).append(curve)
    return variants


def mean_and_spread(values):
    """Mean and standard deviation over seeds; None: not known of all seeds, or of one seed alone."""
    if None in values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def summarize(curves):
    """{variant: {name: (mean, spread)}} of finished runs, and what is beside the baseline, the first variant."""
    table = {}
    for variant, runs in by_variant(curve for curve in curves if curve.finished).items():
        numbers = [run.numbers() for run in runs]
        table[variant] = {name: mean_and_spread([row[name] for row in numbers]) for _, name, _ in COLUMNS}
        table[variant]["runs"] = len(runs)
    return table


def beside(row, baseline):
    """Loss over the baseline's and time as a share of the baseline's, or None."""
    if baseline is None or row is baseline:
        return None, None
    losses = row["loss_dense"][0], baseline["loss_dense"][0]
    return None if None in losses else losses[0] - losses[1], row["seconds"][0] / baseline["seconds"][0]


def write_cell(form, mean, spread=None):
    if mean is None:
        return ""
    return form.format(mean) + (" ± " + form.replace("+", "").format(spread) if spread is not None else "")


def markdown(table, baseline, unfinished):
    headings = ["variant", "runs", *(heading for heading, _, _ in COLUMNS), "loss over baseline", "time / baseline"]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for variant, row in table.items():
        loss, share = beside(row, table.get(baseline))
        cells = [variant, str(row["runs"]), *(write_cell(form, *row[name]) for _, name, form in COLUMNS),
                 write_cell("{:+.4f}", loss), write_cell("{:.2f}", share)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Baseline: {baseline}. {LEGEND}"]
    if unfinished:
        lines += ["", "Not finished, and not in the table: " + ", ".join(
            f"{curve.variant} seed {curve.seed} (step {curve.points[-1][0] if curve.points else 0} of {curve.steps})"
            for curve in unfinished) + "."]
    return "\n".join(lines) + "\n"


def write_csv(path, curves, table, baseline):
    """A row a run, then rows of means and standard deviations."""
    names = [name for _, name, _ in COLUMNS]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", *names, "loss_over_baseline", "time_over_baseline"])

        def write(variant, seed, values, *comparison):
            writer.writerow([variant, seed, *("" if value is None else f"{value:.6g}" for value in [*values, *comparison])])

        for curve in (curve for curve in curves if curve.finished):
            write(curve.variant, curve.seed, [curve.numbers()[name] for name in names], None, None)
        for variant, row in table.items():
            write(variant, "mean", [row[name][0] for name in names], *beside(row, table.get(baseline)))
            write(variant, "deviation", [row[name][1] for name in names], None, None)


# --- the picture ------------------------------------------------------------------------------------------------------


def mean_points(runs, column):
    """(x, mean dense loss, lowest, highest) where all runs of a variant were validated; x is step 0 or seconds 1."""
    shared = set.intersection(*({point[0] for point in run.points if point[3] is not None} for run in runs))
    rows = zip(*([point for point in run.points if point[0] in shared] for run in runs))
    return [(statistics.fmean(point[column] for point in row), statistics.fmean(losses := [point[3] for point in row]),
             min(losses), max(losses)) for row in rows]


def draw_variant(axes, runs, column, color):
    """Stage 1 dashed, dense steps solid, a ring at the switch; the band goes from the lowest to the highest of the seeds."""
    points = mean_points(runs, column)
    if not points:
        return
    stage1 = sum(point[3] is not None for point in runs[0].stage1)
    x, mean, low, high = zip(*points)
    stage1 = min(stage1, len(x))
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(x[:stage1], mean[:stage1], "--", color=color, linewidth=1.2)
    axes.plot(x[max(stage1 - 1, 0):], mean[max(stage1 - 1, 0):], "-", color=color, linewidth=1.8)
    if stage1:
        axes.plot(x[stage1 - 1], mean[stage1 - 1], "o", color=color, markerfacecolor="white", markersize=5)


def draw_ends(figure, axes, variants, colors):
    """Where the variants end: dense loss against time, a dot a seed and a bar at the
    mean; and the way of the baseline, the first one, there."""
    ends = {variant: [(run.points[-1][1], run.points[-1][3]) for run in runs if run.finished]
            for variant, runs in variants.items()}
    means = {variant: [statistics.fmean(values) for values in zip(*points)] for variant, points in ends.items() if points}
    for variant in means:
        axes.plot(*zip(*ends[variant]), "o", color=colors[variant], markersize=5, alpha=0.7)
        if len(ends[variant]) > 1:
            axes.plot(*means[variant], "_", color=colors[variant], markersize=14, markeredgewidth=2)
    axes.margins(x=0.25, y=0.08)
    axes.autoscale_view()
    axes.autoscale(False)
    baseline = next(iter(variants))
    axes.plot(*list(zip(*mean_points(variants[baseline], 1)))[:2], color=colors[baseline], alpha=0.4, linewidth=1.2)
    figure.draw_without_rendering()  # settles where the points are on the page, so that their names do not overlap
    names = []  # (left, right, height) of those that have their place, in points
    for variant, mean in sorted(means.items(), key=lambda item: item[1][1]):
        left, height = axes.transData.transform(mean) * 72 / figure.dpi
        right, free = left + 5.5 * len(variant), height
        for other_left, other_right, other_height in names:
            if left < other_right and other_left < right and abs(free - other_height) < 10:
                free = other_height + 10
        names.append((left, right, free))
        axes.annotate(variant, mean, (7, free - height), textcoords="offset points", va="center", fontsize=8.5,
                      color=colors[variant])


def choose_colors(variants):
    """The baseline is black; the strong colours come before the pale ones."""
    from matplotlib import colormaps
    pick = [color for start in (0, 1) for i, color in enumerate(colormaps["tab20"].colors[start::2]) if i != 7]  # 7: gray
    return {name: pick[(i - 1) % len(pick)] if i else "black" for i, name in enumerate(variants)}


def draw(path, curves, title):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker
    variants = by_variant(curve for curve in curves if any(point[3] is not None for point in curve.points))
    # Runs that are under way would cut the others' mean short.
    variants = {variant: [run for run in runs if run.finished] or runs for variant, runs in variants.items()}
    colors = choose_colors(variants)
    figure, panels = pyplot.subplots(1, 3, figsize=(17, 6.5), layout="constrained")
    for variant, runs in variants.items():
        draw_variant(panels[0], runs, 0, colors[variant])
        draw_variant(panels[1], runs, 1, colors[variant])
    panels[0].set(xlabel="step", ylabel="dense validation loss (nats per token)", title="over steps")
    panels[1].set(xlabel="seconds of training", title="over time")
    panels[2].set(xlabel="seconds of training", title="where the runs end (line: the baseline on its way)")
    for axes in panels[:2]:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    for axes in panels:
        axes.grid(alpha=0.3)
    add_legend(figure, variants, colors)
    figure.suptitle(title)
    draw_ends(figure, panels[2], variants, colors)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def add_legend(figure, variants, colors):
    from matplotlib.lines import Line2D
    handles = [Line2D([], [], color=colors[name], label=f"{name} ({len(runs)})" if len(runs) > 1 else name)
               for name, runs in variants.items()]
    handles += [Line2D([], [], color="gray", linestyle="--", label="stage 1"),
                Line2D([], [], color="gray", marker="o", markerfacecolor="white", label="switch to dense"),
                Line2D([], [], color="gray", linewidth=1.8, label="dense in all layers")]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)


# --- all of it --------------------------------------------------------------------------------------------------------


def add_report_options(parser):
    parser.add_argument("--report", metavar="STEM",
                        help="the report is STEM.md, STEM.png, STEM_table.csv and (the validations) STEM_points.csv "
                             "(default: report in DIR, or the points' own name)")
    parser.add_argument("--variants", metavar="NAME", nargs="+", help="report these, the baseline first (default: all)")
    parser.add_argument("--until", metavar="STEP", type=int,
                        help="report the runs as if they had ended there (right if their learning rate was constant), "
                             "without shorter ones")
    parser.add_argument("--title", default="Variants of the recipe", help="of the picture")


def choose(curves, variants):
    names = list(by_variant(curves))
    unknown = [name for name in variants or () if name not in names]
    if unknown:
        raise AblationError(f"--variants {unknown[0]}: the variants are {', '.join(names)}")
    return [curve for name in variants or names for curve in curves if curve.variant == name]


def report(curves, arguments):
    curves = choose(curves, arguments.variants)
    if arguments.until:
        curves = cut(curves, arguments.until)
    if not any(curve.points for curve in curves):
        print("no report: no run has a validation yet (--val-data, --val-every)")
        return
    baseline, table = curves[0].variant, summarize(curves)
    text = markdown(table, baseline, [curve for curve in curves if not curve.finished])
    from_points = arguments.out.endswith(".csv")
    stem = arguments.report or (arguments.out.removesuffix(".csv") if from_points else os.path.join(arguments.out, "report"))
    with open(stem + ".md", "w") as file:
        file.write(text)
    print(text)
    write_csv(stem + "_table.csv", curves, table, baseline)
    if not from_points:
        write_points(stem + "_points.csv", curves)
    try:
        draw(stem + ".png", curves, arguments.title)
        print(f"the report is {stem}.md, {stem}.png and {stem}_*.csv")
    except ImportError:
        print(f"the report is {stem}.md and {stem}_*.csv; no picture: scripts/setup.sh --plot installs matplotlib")
