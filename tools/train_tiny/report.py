"""docs/tiny.md and its pictures, from the logs of a training and the quality measured through the server."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import matplotlib
import typer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from train_tiny.phrasings import KEEP

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
QUALITY, TRAINING = RESULTS / "tiny_quality.json", RESULTS / "tiny_training.json"
DOCS = ROOT / "docs"
STAGES = ("vae", "dit", "objects", "stream", "decoder")

TEXT = """# The tiny checkpoint

`tiny` is the whole architecture at small size, trained by this project, so that a demo and a test show real edits on
a CPU.

```sh
PYTHONPATH=tools python -m train_tiny --work out/tiny     # data and all stages: one GPU, 38 minutes
PYTHONPATH=tools python -m train_tiny --work out/tiny --stage ablation               # without cycle-reverse, 10 minutes
make quality                                              # every figure below that is served
PYTHONPATH=tools python -m train_tiny.report out/tiny     # this page
```

The data is generated while training, over pictures with free licences ([list](tiny-data.md)); the shipped clip is held
out, and so are the instructions below. Ground truth is computed, so every edit has a PSNR against what it should be.

The shipped weights are of these stages, run on three machines with an H200, each stage from what the one before left.
There compiling took four of the DiT stage's minutes and one of the next stage's, which in the one command happens
beside the VAE stage. So the command gives the same recipe, with more of it, and not the same bytes.

## Against the goals

{goals}

Speed is the best of all streams, since a machine that does other work slows single ones.

## Every edit, through the server

Eight chunks, instructions that were not trained on, on the held-out clip (looks) and on three held-out generated scenes
each (objects). Mean PSNR in dB against the true edit: of the unedited source, of the edit, and of an edit with a wrong
instruction; `gain` is the edit's over the source's, `least` that of the scene which gains least. `border` is the change
of the error across a chunk border over that inside chunks. Motion is uneven: the clip's own frame differences have a
ratio between 0.77 and 1.33, by where in the clip the stream begins. So all is streamed twice, half a chunk apart, and
every moment at a border is compared with the same moment inside a chunk; `raw` is the ratio without that.

{edits}

![Source, truth and edit at two moments of each stream, in the order of the table](tiny-edits.jpg)

An object is a small part of a frame, so its edits gain least. Which object is meant has to be seen: of held-out
scenes with two or three objects, offline, {choice} of first chunks show the named one edited, and no other.

{misread}

## Long streams

PSNR in dB per chunk of {long_chunks}-chunk streams, served, means of three scenes per edit. All motion comes round
after 38 chunks: chunk 40 shows what chunk 2 showed, and any difference is drift.

{long}

## Does the state matter, do the cycle and the decoder stage help

Mean PSNR in dB over held-out generated scenes of all kinds, offline: of {long_chunks}-chunk streams, and of streams of
eight chunks, of those the one that keeps the video, and their border ratio. The last stage of the training shows the
VAE's decoder what the editor leaves; the lower two rows are without it.

{ablation}

{cycle}

{state}

![Training curves, and the PSNR of every chunk of a long stream with and without state](tiny-curves.png)
"""


def main(
    work: Annotated[
        Path | None, typer.Argument(help="Folder of a training, whose logs replace the recorded ones.")
    ] = None,
) -> None:
    """Write docs/tiny.md and its curves."""
    if work:
        TRAINING.write_text(json.dumps(logs(work), indent=1) + "\n")
    quality, training = json.loads(QUALITY.read_text()), json.loads(TRAINING.read_text())
    draw(training, DOCS / "tiny-curves.png")
    text = TEXT.format(
        goals=table(("goal", "measured", "met"), goals(quality, training)),
        edits=edits(quality["edits"]),
        long_chunks=len(next(iter(quality["long"].values()))),
        long=long_streams(quality["long"]),
        choice=f"{training['quality']['choice']:.0%}",
        misread=misread(training["quality"]["misread"]),
        cycle=cycle(training),
        state=state(training["quality"]["state"]),
        ablation=ablation(training),
    )
    (DOCS / "tiny.md").write_text(text)


def logs(work: Path) -> dict[str, Any]:
    """What a training has logged: a curve per stage, and quality with and without what is ablated."""

    def read(name: str) -> Any:
        return json.loads((work / f"{name}.json").read_text())

    curves = {stage: read(f"{stage}_curve") for stage in STAGES}
    no_cycle = read("no_cycle_streams") | {"steps": read("no_cycle_curve")[-1]["step"]}
    return {"curves": curves, "quality": read("quality"), "stream": read("stream_streams"), "no_cycle": no_cycle}


def goals(quality: Mapping[str, Any], training: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [row for row in quality["edits"] if row["edit"] != KEEP]
    worst = min(rows, key=lambda row: row["gain"])
    closest = min(quality["edits"], key=lambda row: row["edited"] - row["wrong"])
    borders = {row["edit"]: row["border"] for row in quality["edits"]}
    drops = {key: chunks[2] - chunks[40] for key, chunks in quality["long"].items()}
    border, drop = mean([*borders.values()]), mean([*drops.values()])
    carried, zeroed = (mean(chunks[2:]) for chunks in training["quality"]["state"].values())
    lost, fps = quality["vae"] - kept(quality["edits"]), max(row["fps"] for row in quality["edits"])
    return [
        goal("VAE reconstruction of the held-out clip at least 28 dB", quality["vae"], quality["vae"] >= 28, "dB"),
        goal(
            f"every edit at least 6 dB above the source (worst: {worst['edit']})",
            worst["gain"],
            worst["gain"] >= 6,
            "dB",
        ),
        goal(
            f"the wrong instruction is worse on every edit (closest: {closest['edit']})",
            closest["edited"] - closest["wrong"],
            closest["edited"] > closest["wrong"],
            "dB",
        ),
        goal("keep: within 1.5 dB of the VAE", lost, lost <= 1.5, "dB"),
        goal(f"border ratio at most 1.15 (mean of all edits; worst: {largest(borders)})", border, border <= 1.15, ""),
        goal(f"chunk 40 within 0.5 dB of chunk 2 (mean; worst: {largest(drops)} dB)", drop, drop <= 0.5, "dB"),
        goal("zeroing the state costs quality", carried - zeroed, carried > zeroed, "dB"),
        goal("served on 2 cores at least 8 frames per second (stream least disturbed)", fps, fps >= 8, "fps"),
    ]


def largest(figures: Mapping[str, float]) -> str:
    """The edit with the largest figure, and the figure."""
    key = max(figures, key=lambda key: figures[key])
    return f"{key}, {figures[key]:.2f}"


def goal(text: str, value: float, met: bool, unit: str) -> tuple[str, str, str]:
    return text, f"{value:.2f} {unit}".strip(), "yes" if met else "**no**"


def misread(lost: Sequence[tuple[str, float]]) -> str:
    """One sentence on the held-out instructions that edit far worse than a trained one."""
    if not lost:
        return "No held-out instruction edits a first chunk by 3 dB worse than a trained one."
    listed = ", ".join(f'"{text}" ({drop:.1f} dB)' for text, drop in lost)
    return fill(f"Of the held-out instructions, these are worse than a trained one by 3 dB or more: {listed}.", 120)


def edits(rows: Sequence[Mapping[str, Any]]) -> str:
    figures = ("source", "edited", "gain", "least", "wrong", "border", "border_raw")
    shown = [(row["edit"], row["prompt"], *(f"{row[name]:.2f}" for name in figures)) for row in rows]
    return table(("edit", "instruction", *figures[:-1], "raw"), shown)


def long_streams(streams: Mapping[str, Sequence[float]]) -> str:
    moments = (0, 2, 10, 20, 30, 40)
    rows = [(key, *(f"{chunks[i]:.2f}" for i in moments)) for key, chunks in streams.items()]
    return table(("edit", *(f"chunk {i}" for i in moments)), rows)


def cycle(training: Mapping[str, Any]) -> str:
    """What cycle-reverse costs and brings, in two sentences."""
    shipped, without = training["stream"], training["no_cycle"]
    steps = training["curves"]["stream"][-1]["step"], without["steps"]
    change = mean(shipped["drift"][2:]) - mean(without["drift"][2:])
    same = kept(shipped["procedural"]) - kept(without["procedural"])
    return fill(
        f"Both trainings of the streaming stage had the same time: {steps[0]} steps with cycle-reverse, {steps[1]} "
        f"without. Cycle-reverse changes what is kept by {same:+.2f} dB, the mean of long streams by {change:+.2f}.",
        120,
    )


def state(chunks: Mapping[str, Sequence[float]]) -> str:
    """What it costs to forget, in one sentence."""
    carried, zeroed = (mean(values[2:]) for values in chunks.values())
    return fill(
        f"With the state zeroed before every chunk, the mean of chunks 2 to {len(chunks['zeroed']) - 1} of such "
        f"streams is {zeroed:.2f} dB; with the state carried it is {carried:.2f} dB.",
        120,
    )


def ablation(training: Mapping[str, Any]) -> str:
    rows = {
        "shipped": training["quality"],
        "without the decoder stage": training["stream"],
        "without the decoder stage and cycle-reverse": training["no_cycle"],
    }
    drifts = [(name, figures["drift"]) for name, figures in rows.items()]
    moments = [(name, *(f"{x:.2f}" for x in (drift[2], drift[40], mean(drift[2:])))) for name, drift in drifts]
    edited = [figures["procedural"] for figures in rows.values()]
    means = [(of_edits(streams, "edited"), f"{kept(streams):.2f}", of_edits(streams, "border")) for streams in edited]
    return table(
        ("", "chunk 2", "chunk 40", "mean of chunks 2 to 41", "8 chunks", KEEP, "border"),
        [(*moment, *figures) for moment, figures in zip(moments, means, strict=True)],
    )


def kept(rows: Sequence[Mapping[str, Any]]) -> float:
    """PSNR of streams that were asked to stay as they are."""
    return float(next(row["edited"] for row in rows if row["edit"] == KEEP))


def of_edits(rows: Sequence[Mapping[str, Any]], figure: str) -> str:
    """The mean of a figure of a table of edits."""
    return f"{mean([row[figure] for row in rows]):.2f}"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw(training: Mapping[str, Any], path: Path) -> None:
    """Loss (VAE and its decoder: PSNR) of every stage over its steps, and the drift of long streams."""
    curves = training["curves"]
    figure, axes = plt.subplots(1, len(curves) + 1, figsize=(18, 3.2), constrained_layout=True)
    for axis, (stage, points) in zip(axes, curves.items(), strict=False):
        what = "psnr" if "psnr" in points[0] else "loss"
        axis.plot([point["step"] for point in points], [point[what] for point in points], linewidth=1)
        axis.set(title=f"{stage} stage", xlabel="step", ylabel="PSNR, dB" if what == "psnr" else "loss")
        if what == "loss":
            axis.set_yscale("log")
    axes[-1].plot(training["quality"]["drift"], label="42 chunks")
    for name, chunks in training["quality"]["state"].items():
        axes[-1].plot(chunks, label=f"state {name}")
    axes[-1].set(title="long streams", xlabel="chunk", ylabel="PSNR, dB")
    axes[-1].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
