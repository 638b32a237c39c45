"""The figures of a search report."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sana_build.search import Outcome

Figures = dict[str, Any]

WIDE = (8.0, 5.2)
DPI = 90
MAGNIFIED = 8
NAME, LINE = 0.17, 0.028
"""Width and height of a label as shares of the figure's."""

TILE = 1.5
"""Width of a picture in a strip, in inches."""

LEADER = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkB": 3}
STYLES = {
    "baseline": ("*", "black"),
    "sweep": ("o", "tab:blue"),
    "comparison": ("s", "tab:orange"),
    "mix": ("D", "tab:purple"),
    "random": ("x", "tab:brown"),
    "short list": ("^", "tab:green"),
    "refinement": ("v", "tab:red"),
}
"""Marker and colour of every stage."""


def draw(outcome: "Outcome", figures: Figures, folder: Path) -> None:
    """groups.png, predicted.png (if anything was predicted), front.png and strips.jpg."""
    import matplotlib

    matplotlib.use("Agg")
    _save(_groups, figures, folder / "groups.png")
    if figures["prediction"]:
        _save(_predicted, figures, folder / "predicted.png")
    _save(_fronts, figures, folder / "front.png")
    _strips(outcome, folder / "strips.jpg")


def _save(plot: Any, figures: Figures, path: Path) -> None:
    from matplotlib.figure import Figure

    panels = 2 if plot is _fronts and figures["card_front"] else 1
    figure = Figure(figsize=(WIDE[0] * (1 + 0.5 * (panels - 1)), WIDE[1]), layout="constrained")
    plot(figure.subplots(1, panels, squeeze=False)[0], figures)
    figure.savefig(path, dpi=DPI)


def _groups(axes: "list[Axes]", figures: Figures) -> None:
    """Figure 6 of the paper: what each group alone does to quality and speed, over lines of equal cost."""
    [axis] = axes
    rows = [row for row in figures["trials"] if row["stage"] in ("baseline", "sweep") and "bf16" not in row["policy"]]
    rows += [figures["picks"][name] | {"policy": name} for name in ("mpq", "found", "fast") if name in figures["picks"]]
    for row in rows:
        marker, colour = STYLES[row["stage"]]
        axis.scatter(row["speedup"], row["rmse"], marker=marker, color=colour, zorder=3)
    axis.margins(0.12, 0.06)
    _equal_costs(axis)
    _label(axis, rows)
    _name(axis, "ideal speed-up over BF16")


def _label(axis: "Axes", rows: list[Figures]) -> None:
    """The names of the points, moved up where they would lie on another."""
    wide, line = np.ptp(axis.get_xlim()), LINE * np.ptp(axis.get_ylim())
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row["rmse"], -row["speedup"])):
        speed, height = row["speedup"], row["rmse"]
        while any(abs(speed - x) < NAME * wide and abs(height - y) < line for x, y in placed):
            height += line / 4
        placed.append((speed, height))
        side, align = (-0.02, "right") if row["stage"] == "baseline" else (0.02, "left")
        place, point = (speed + side * wide, height), (speed, row["rmse"])
        axis.annotate(row["policy"], point, place, fontsize=7, va="center", ha=align, arrowprops=LEADER)


def _equal_costs(axis: "Axes") -> None:
    """Rays on which RelRMSE over speed-up is the same."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    speeds = np.array([left, right])
    for cost in np.linspace(0, high / left, 12)[1:]:
        axis.plot(speeds, cost * speeds, color="0.85", linewidth=0.8, zorder=1)
    axis.set(xlim=(left, right), ylim=(low, high))


def _predicted(axes: "list[Axes]", figures: Figures) -> None:
    [axis] = axes
    rows = [row for row in figures["trials"] if row["stage"] not in ("baseline", "sweep")]
    for stage, group in _by_stage(rows):
        marker, colour = STYLES[stage]
        points = [(row["predicted"], row["rmse"]) for row in group]
        predicted, measured = zip(*points, strict=True)
        axis.scatter(predicted, measured, s=24, color=colour, marker=marker, label=stage)
    edge = 1.05 * max(max(row["predicted"], row["rmse"]) for row in rows)
    axis.plot([0, edge], [0, edge], color="0.7", linewidth=0.8)
    correlation = figures["prediction"]["rank_correlation"]
    axis.set(xlabel="RelRMSE predicted from the sweep alone", ylabel="RelRMSE measured")
    axis.set_title(f"rank correlation {correlation:.3f} over {len(rows)} policies", fontsize=10)
    axis.legend()


def _fronts(axes: "list[Axes]", figures: Figures) -> None:
    _front(axes[0], figures, "speedup", figures["front"])
    _name(axes[0], "ideal speed-up over BF16")
    if figures["card_front"]:
        _front(axes[1], figures, "card_ms", figures["card_front"])
        _name(axes[1], f"ms per chunk at the ceilings of {figures['gpu']} (roofline)")


def _front(axis: "Axes", figures: Figures, across: str, front: list[str]) -> None:
    for stage, group in _by_stage(figures["trials"]):
        marker, colour = STYLES[stage]
        points = [(row[across], row["rmse"]) for row in group]
        across_all, errors = zip(*points, strict=True)
        axis.scatter(across_all, errors, s=18, color=colour, marker=marker, label=stage)
    rows = sorted((row for row in figures["trials"] if row["policy"] in front), key=lambda row: row[across])
    axis.plot([row[across] for row in rows], [row["rmse"] for row in rows], color="black", linewidth=0.8)
    for name in ("mpq", "found", "fast"):
        if row := figures["picks"].get(name):
            axis.annotate(name, (row[across], row["rmse"]), (5, -9), textcoords="offset points", fontsize=8)
    axis.legend(fontsize=7)


def _by_stage(rows: list[Figures]) -> Iterator[tuple[str, list[Figures]]]:
    for stage in STYLES:
        if group := [row for row in rows if row["stage"] == stage]:
            yield stage, group


def _name(axis: "Axes", across: str) -> None:
    axis.set(xlabel=across, ylabel="RelRMSE of the edited latents")


def _strips(outcome: "Outcome", path: Path) -> None:
    """Rows: source, reference, picks; columns: for every stream its last frame and its magnified difference."""
    from matplotlib.figure import Figure

    reference = outcome.findings["reference"].stills
    rows = {"source": outcome.sources, **{name: finding.stills for name, finding in outcome.findings.items()}}
    count, (height, width) = len(reference), reference.shape[1:3]
    figure = Figure(figsize=(2 * count * TILE, len(rows) * TILE * height / width))
    axes = figure.subplots(len(rows), 2 * count, squeeze=False)
    figure.subplots_adjust(left=0.08, right=1, bottom=0, top=1, wspace=0.03, hspace=0.03)
    for line, (name, stills) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=7)
        for stream in range(count):
            line[2 * stream].imshow(stills[stream])
            if name not in ("source", "reference"):
                gap = np.abs(stills[stream].astype(int) - reference[stream])
                line[2 * stream + 1].imshow(np.minimum(MAGNIFIED * gap, 255).astype(np.uint8))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=DPI, pil_kwargs={"quality": 80})
