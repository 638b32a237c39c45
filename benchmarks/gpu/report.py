"""The report of `make bench-gpu`: figures beside what the published code reaches, what we want, and the roofline."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """A figure of the report: its unit, what the published code reaches on an H200, and what we want there."""

    unit: str
    published: float | None = None
    target: float | None = None
    more_is_better: bool = False

    def met(self, value: float) -> bool | None:
        if self.target is None:
            return None
        return value >= self.target if self.more_is_better else value <= self.target


GOALS = {
    "GDN operator, bf16": Goal("us", 317, 50),
    "GDN operator, tf32": Goal("us", 516, 120),
    "GDN operator, fp32": Goal("us", 880, 300),
    "GDN layer, bf16": Goal("us", 885, 280),
    "DiT chunk, bf16": Goal("ms", 276, 95),
    "DiT chunk, fp8": Goal("ms", None, 65),
    "DiT first chunk, bf16": Goal("ms", 365, 126),
    "VAE encode": Goal("ms", 152, 105),
    "VAE decode": Goal("ms", 108, 50),
    "whole chunk, bf16": Goal("ms", 545, 250),
    "whole chunk, fp8": Goal("ms", None, 210),
    "peak memory, DiT, bf16": Goal("GB", 15.7, 7),
    "peak memory, one stream, bf16": Goal("GB", None, 14),
    "peak memory, one stream, fp8": Goal("GB", None, 14),
    "eight streams over one": Goal("x", None, 1.5, more_is_better=True),
}
"""Published figures and targets were measured or set for one H200, torch 2.11."""

STAGES = ("DiT chunk, bf16", "VAE encode", "VAE decode")


def goal_of(name: str) -> Goal:
    """Of a figure without one, the unit alone."""
    unit = "us" if "GDN" in name else "GB" if "memory" in name else "ms"
    return GOALS.get(name, Goal(unit))


@dataclass
class Report:
    """Figures in a file that is written again with each of them; `floors` are what the roofline allows."""

    console: Console
    output: Path | None
    picture: Path | None
    about: dict[str, str] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def nowhere(cls) -> "Report":
        """Of a run that is not made for its figures."""
        return cls(Console(quiet=True), None, None)

    def errors(self, name: str, errors: Any) -> None:
        self.found[name] = errors
        self.console.print(f"{name}: as near to FP32 as it has to be")
        self._write()

    def note(self, name: str, value: float, floor: float | None = None) -> None:
        self.figures[name] = value
        if floor is not None:
            self.floors[name] = floor
        self.console.print(f"{name:40} {value:8.4g} {goal_of(name).unit}  {self._share(name)}", highlight=False)
        self._write()

    def part(self, name: str, seconds: float) -> None:
        """The end of a part of the run, which took so long."""
        self.seconds[name] = seconds
        self.console.print(f"[dim]{name} took {seconds:.0f} s[/]")
        if all(f"{stage}, batch 8" in self.figures for stage in STAGES):
            one, eight = (sum(self.figures[stage + suffix] for stage in STAGES) for suffix in ("", ", batch 8"))
            self.figures["eight streams over one"] = 8 * one / eight
        self._write()
        if self.picture is not None and self.figures.keys() & GOALS.keys():
            draw(self.figures, self.about["gpu"], self.picture)

    def show(self) -> None:
        table = Table("", "measured", "of the roofline", "published code", "target", "")
        order = list(GOALS)
        for name in sorted(self.figures, key=lambda name: order.index(name) if name in order else len(order)):
            goal, value = goal_of(name), self.figures[name]
            met = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[goal.met(value)]
            limits = (f"{limit:g}" if limit else "" for limit in (goal.published, goal.target))
            table.add_row(name, f"{value:.4g} {goal.unit}", self._share(name), *limits, met)
        self.console.print(table)

    def _share(self, name: str) -> str:
        return f"{self.floors[name] / self.figures[name]:.0%}" if name in self.floors else ""

    def _write(self) -> None:
        if self.output is None:
            return
        shares = {name: floor / self.figures[name] for name, floor in self.floors.items()}
        written = {**self.about, "errors": self.found, "figures": self.figures, "roofline_share": shares}
        self.output.write_text(json.dumps({**written, "seconds": self.seconds}, indent=1) + "\n")


def draw(figures: dict[str, float], gpu: str, path: Path) -> None:
    """Bars of what has a target and a figure, as multiples of the target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(name, goal, figures[name]) for name, goal in GOALS.items() if goal.target and name in figures]
    rows = [row for row in rows if not row[1].more_is_better]
    figure, axis = pyplot.subplots(figsize=(8, 0.36 * len(rows) + 1.2))
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    places = range(len(rows))[::-1]
    bars = {
        "published code": (0.2, "#c8c8c8", [goal.published for _, goal, _ in rows]),
        "this engine": (-0.2, "#76b900", [value for _, _, value in rows]),
    }
    for label, (up, colour, values) in bars.items():
        shown = [
            (place + up, goal, value) for place, (_, goal, _), value in zip(places, rows, values, strict=True) if value
        ]
        lengths = [value / goal.target for _, goal, value in shown]
        drawn = axis.barh([place for place, _, _ in shown], lengths, 0.38, color=colour, label=label)
        axis.bar_label(drawn, [f"{value:.3g} {goal.unit}" for _, goal, value in shown], padding=3, fontsize=7)
    axis.margins(x=0.1)
    axis.set(yticks=list(places), xlabel=f"multiples of the target, {gpu}")
    axis.set_yticklabels([name for name, _, _ in rows])
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
