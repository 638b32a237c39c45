"""The figures of `sana-build plan` as tables for a person."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sana_quant.groups import GROUPS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sana_build.plan_report import Figures

TENSOR = ("bf16", "fp8", "nvfp4")
"""Precisions whose tensor throughput the GPU table may hold."""


def render(figures: "Figures", console: "Console") -> None:
    """Print every table and, last, whether this version can build what they describe."""
    for table in (_summary(figures), _precisions(figures), _groups(figures), _cards(figures)):
        console.print(table)
    for line in _sources(figures):
        console.print(line, highlight=False)
    console.print(_engines(figures))
    gpu = figures["gpu"]["name"]
    if reason := figures["gpu"]["obstacle"]:
        console.print(f"a plan only, for {gpu} cannot be built here: {reason}")
    else:
        console.print("`sana-build` with these options and --output DIR, without `plan`, builds this")


def _summary(figures: "Figures") -> "Table":
    from rich.table import Table

    chunk, gpu, speedup = figures["chunk"], figures["gpu"], figures["ideal_speedup"]
    rows = {
        "model": figures["model"],
        "checkpoint": figures["checkpoint"],
        "target": f"{gpu['name']} ({gpu['title']}), engines for {gpu['backend']}",
        "policy": f"{figures['policy']['name']} ({figures['policy']['title']})",
        "chunk": f"{chunk['frames']} frames, {chunk['tokens']} tokens over {chunk['keys']} keys, "
        f"{chunk['passes']} passes",
        "ideal speed-up": f"{speedup['padded']:.2f} over BF16 in the ten groups, outputs padded to 128; "
        f"{speedup['exact']:.2f} without padding",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def _precisions(figures: "Figures") -> "Table":
    from rich.table import Table

    head = ("params\nM", "\nGFLOP", "padded\nM", "padded\nGFLOP", "share\nM %", "share\nGFLOP %", "roofline\nms")
    title = "one pass over one chunk; padded figures and shares count as the paper does"
    table = Table("precision", "layers", *head, title=title, box=None)
    # The members of a family differ in their times.
    times = figures["cards"][0]["parts_ms"] if len(figures["cards"]) == 1 else {}
    for row in figures["precisions"]:
        counts = (row[name] for name in ("params_m", "gflop", "padded_params_m", "padded_gflop"))
        percent = f"{100 * row['param_share']:.0f}", f"{100 * row['flop_share']:.0f}"
        cells = row["precision"], str(row["layers"]), *(f"{count:.1f}" for count in counts), *percent
        table.add_row(*cells, _ms(times.get(row["precision"])))
    rest = figures["outside"]
    sizes = f"{rest['params_m']:.1f}", f"{rest['gflop']:.1f}"
    table.add_row(f"rest, {rest['precision']}", "", *sizes, "", "", "", "", _ms(times.get("outside")))
    return table


def _groups(figures: "Figures") -> "Table":
    from rich.table import Table

    table = Table("group", "module", "blocks")
    for group, blocks in figures["groups"].items():
        table.add_row(group, GROUPS[group], "; ".join(f"{precision}: {where}" for precision, where in blocks.items()))
    rest = figures["outside"]
    table.add_row("always high", ", ".join(rest["modules"]), f"{rest['precision']}: all")
    return table


def _cards(figures: "Figures") -> "Table":
    from rich.table import Table

    title = "roofline, not a measurement; without what runs once per prompt"
    ceilings = [f"{name}\nTFLOP/s" for name in TENSOR]
    table = Table("card", "policy", "ms per\npass", "ms per\nchunk", *ceilings, "\nGB/s", "\nGB", title=title, box=None)
    for card in figures["cards"]:
        known = (f"{figure['value']:g}" if figure else "-" for figure in _ceilings(card).values())
        table.add_row(card["name"], card["policy"], _ms(card["pass_ms"]), _ms(card["chunk_ms"]), *known)
    return table


def _ceilings(card: "Figures") -> dict[str, "Figures | None"]:
    tensor = {name: card["tensor_tflops"].get(name) for name in TENSOR}
    return {**tensor, "GB/s": card["bandwidth_gb_s"], "GB": card["memory_gb"]}


def _sources(figures: "Figures") -> Iterator[str]:
    """One line per source: which figures of which cards are from there."""
    cited: dict[str, list[str]] = {}
    for card in figures["cards"]:
        names: dict[str, list[str]] = {}
        for name, figure in _ceilings(card).items():
            if figure:
                names.setdefault(figure["source"], []).append(name)
        for source, found in names.items():
            cited.setdefault(source, []).append(f"{card['name']} {' '.join(found)}")
    return (f"{source}: {'; '.join(cards)}" for source, cards in cited.items())


def _engines(figures: "Figures") -> "Table":
    from rich.table import Table

    table = Table("engine", "runs", "MB", "cards", title="engines, estimated from parameters and precision")
    every = [card["name"] for card in figures["cards"]]
    for engine in figures["engines"]:
        size = f"{engine['bytes'] / 1e6:.1f}"
        cards = "every" if engine["cards"] == every else ", ".join(engine["cards"])
        table.add_row(f"{engine['stage']}/{engine['variant']}", engine["runs"], size, cards)
    table.add_row("all engines", "", f"{figures['engine_bytes'] / 1e6:.1f}", "")
    table.add_row("transformer state", "", f"{figures['state_bytes_per_stream'] / 1e6:.1f}", "per stream")
    return table


def _ms(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}"
