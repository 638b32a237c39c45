"""The build: export every stage, measure it against PyTorch, package the repository, put it in place."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_build.plan import IDLE_SECONDS, STAGES, Plan
from sana_build.repository import package
from sana_runtime.errors import ConfigError
from sana_runtime.manifest import EngineEntry, Manifest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sana_export.graphs import Graph

EXAMPLE_PROMPT = "Make it a watercolor painting"

VERSIONED = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "transformers", "diffusers", "numpy")


@dataclass(frozen=True)
class BuiltEngine:
    """One engine file as it was written, with the time it took and its size in bytes."""

    stage: str
    variant: str
    entry: EngineEntry
    seconds: float
    bytes: int


def build(plan: Plan, console: "Console") -> Manifest:
    """Build `plan` into its output folder, which is replaced only when everything has succeeded."""
    started = time.monotonic()
    with _staging(plan.output) as staging:
        with console.status("checking the checkpoint"):
            plan.checkpoint.check(plan.model)
        built = _build_engines(plan, staging, console)
        shutil.copyfile(plan.checkpoint.tokenizer_path(), staging / "text_encoder" / "1" / "tokenizer.json")
        manifest = package(staging, _manifest(plan, built))
    console.print(_summary(built))
    console.print(f"built [bold]{plan.output}[/] in {time.monotonic() - started:.0f} s")
    return manifest


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A folder beside `output` that becomes `output` if the block succeeds, and disappears if it does not."""
    staging = output.absolute().with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written ({error.strerror}): name another folder") from error
    try:
        yield staging
        if output.exists():
            shutil.rmtree(output)
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _build_engines(plan: Plan, staging: Path, console: "Console") -> list[BuiltEngine]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    built = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("loading the checkpoint", total=sum(map(len, STAGES.values())))
        for graph in _graphs(plan):
            progress.update(task, description=f"building {graph.stage}/{graph.variant}")
            built.append(_build_engine(plan, graph, staging))
            progress.advance(task)
    return built


def _graphs(plan: Plan) -> "Iterator[Graph]":
    """Every graph of the model, one stage loaded at a time."""
    from sana_export import graphs
    from sana_export.text import chi_prompt
    from sana_runtime.prompts import PromptTokenizer

    checkpoint, model = plan.checkpoint, plan.model
    tokenizer = PromptTokenizer(checkpoint.tokenizer_path(), chi_prompt(), model.dit.text_tokens)
    text = graphs.text_graph(checkpoint.load_text(model), tokenizer.encode(EXAMPLE_PROMPT))
    yield text
    example = text.run()
    yield from graphs.vae_graphs(checkpoint.load_vae(model.vae), model.geometry)
    yield from graphs.denoiser_graphs(checkpoint.load_dit(model.dit), model, example["text"], example["text_mask"])


def _build_engine(plan: Plan, graph: "Graph", staging: Path) -> BuiltEngine:
    from sana_export.onnx_export import export, measure
    from sana_runtime.engine import describe, load_engine

    started = time.monotonic()
    relative = Path(graph.stage) / "1" / f"{graph.variant}.onnx"
    export(graph, staging / relative)
    engine = load_engine(plan.target.backend, staging / relative)
    tensors = describe(engine.inputs), describe(engine.outputs)
    entry = EngineEntry(str(relative), plan.target.backend, *tensors, measure(graph, engine))
    size = sum(file.stat().st_size for file in (staging / relative).parent.glob(f"{relative.name}*"))
    return BuiltEngine(graph.stage, graph.variant, entry, time.monotonic() - started, size)


def _manifest(plan: Plan, built: list[BuiltEngine]) -> Manifest:
    engines: dict[str, dict[str, EngineEntry]] = {stage: {} for stage in STAGES}
    for engine in built:
        engines[engine.stage][engine.variant] = engine.entry
    return Manifest(
        model=plan.model.name,
        gpu=plan.target.name,
        policy=plan.policy.name,
        checkpoint=plan.checkpoint.describe(),
        weights=plan.checkpoint.identity(),
        geometry=plan.model.geometry,
        steps=plan.model.stream.steps,
        streams=plan.streams,
        idle_seconds=IDLE_SECONDS,
        engines=engines,
        versions={name: version(name) for name in VERSIONED},
        config=_config(plan),
    )


def _config(plan: Plan) -> dict[str, Any]:
    from sana_export.text import chi_prompt

    model = plan.model
    text = {"tokens": model.dit.text_tokens, "width": model.dit.caption_width, "chi": chi_prompt()}
    return {"text": text, "dit": asdict(model.dit), "vae": asdict(model.vae), "stream": asdict(model.stream)}


def _summary(built: list[BuiltEngine]) -> "Table":
    from rich.table import Table

    table = Table("stage", "variant", "MB", "seconds", "worst error against PyTorch", title="engines")
    for engine in built:
        name, error = max(engine.entry.error.items(), key=lambda item: item[1])
        table.add_row(
            engine.stage, engine.variant, f"{engine.bytes / 1e6:.1f}", f"{engine.seconds:.1f}", f"{error:.1e}  {name}"
        )
    return table
