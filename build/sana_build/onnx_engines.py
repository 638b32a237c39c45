"""Every engine of a repository for the CPU: ONNX files, each measured against PyTorch as soon as it is written."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.built import Built, BuiltEngine
from sana_runtime.manifest import EngineEntry

if TYPE_CHECKING:
    from sana_build.engine_progress import EngineProgress
    from sana_build.plan import Plan
    from sana_export.graphs import Graph

EXAMPLE_PROMPT = "Make it a watercolor painting"


def build_onnx_engines(plan: "Plan", staging: Path, progress: "EngineProgress") -> Built:
    """Write every graph of the plan below `staging`."""
    built = []
    for graph in _graphs(plan):
        progress.report(f"building {graph.stage}/{graph.variant}")
        built.append(_build_engine(plan, graph, staging))
        progress.advance()
    return Built(built)


def _graphs(plan: "Plan") -> "Iterator[Graph]":
    """Every graph of the model, one stage loaded at a time."""
    from sana_export import graphs
    from sana_export.text import prompt_tokenizer

    checkpoint, model = plan.checkpoint, plan.model
    tokenizer = prompt_tokenizer(checkpoint.tokenizer_path(), model.dit.text_tokens)
    text = graphs.text_graph(checkpoint.load_text(model), tokenizer.encode(EXAMPLE_PROMPT))
    yield text
    example = text.run()
    yield from graphs.vae_graphs(checkpoint.load_vae(model.vae), model.geometry)
    yield from graphs.denoiser_graphs(checkpoint.load_dit(model.dit), model, example["text"], example["text_mask"])


def _build_engine(plan: "Plan", graph: "Graph", staging: Path) -> BuiltEngine:
    from sana_export.onnx_export import export, measure
    from sana_runtime.engine import describe, load_engine

    started = time.monotonic()
    path = staging / graph.stage / "1" / f"{graph.variant}.onnx"
    export(graph, path)
    engine = load_engine(plan.target.backend, path)
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    entry = EngineEntry(
        str(path.relative_to(staging)),
        plan.target.backend,
        describe(engine.inputs),
        describe(engine.outputs),
        measure(graph, engine),
        policy=plan.policy.name,
        bytes=size,
    )
    return BuiltEngine(graph.stage, graph.variant, entry, time.monotonic() - started)
