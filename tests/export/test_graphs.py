"""The graphs that become engines: stepped by the server's own stages, they do what the PyTorch model does."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from micro import MICRO
from sana_export import graphs
from sana_export.checkpoint import resolve
from sana_export.configs import ModelConfig
from sana_export.dit import DiT
from sana_export.onnx_export import export, measure
from sana_export.sampler import DiTStream
from sana_runtime.denoiser import DenoiserStage
from sana_runtime.engine import OneByOne, TensorSpec, check_feeds, load_engine
from sana_runtime.errors import BuildError
from sana_runtime.manifest import Manifest
from sana_runtime.memory import HostMemory
from sana_runtime.schedule import chunk_noise, streaming_schedule
from sana_runtime.stages import Request

TEXT = torch.randn(1, MICRO.dit.text_tokens, MICRO.dit.caption_width, generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(MICRO.dit.text_tokens) < 20).float()[None]


class TorchEngine(OneByOne):
    """A graph evaluated by PyTorch, behind the interface of an engine."""

    memory = HostMemory()

    def __init__(self, graph: graphs.Graph) -> None:
        self.graph = graph
        self.inputs = tuple(TensorSpec(name, str(t.numpy().dtype), tuple(t.shape)) for name, t in graph.inputs.items())
        self.outputs = ()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        inputs = {spec.name: torch.from_numpy(feeds[spec.name]) for spec in self.inputs}
        return {name: tensor.numpy() for name, tensor in replace(self.graph, inputs=inputs).run().items()}


def manifest(model: ModelConfig) -> Manifest:
    text = {"tokens": model.dit.text_tokens, "width": model.dit.caption_width}
    return Manifest(
        "micro", "cpu", "fp32", "", "", model.geometry, 4, 2, 60.0, engines={}, versions={}, config={"text": text}
    )


def through_stage(dit: DiT, model: ModelConfig, sources: list[torch.Tensor]) -> list[np.ndarray]:
    engines = {graph.variant: TorchEngine(graph) for graph in graphs.denoiser_graphs(dit, model, TEXT, MASK)}
    stage = DenoiserStage(engines, manifest(model))
    tensors = {"text": TEXT.numpy(), "text_mask": MASK.numpy()}
    latents = []
    for index, source in enumerate(sources):
        request = Request({**tensors, "source": source.numpy()}, {"chunk": index}, "1", start=index == 0)
        latents.append(stage.run(request)["latent"])
    return latents


def through_sampler(dit: DiT, model: ModelConfig, sources: list[torch.Tensor]) -> list[np.ndarray]:
    stream = DiTStream(dit, streaming_schedule(4), model.stream.window, sink=True)
    with torch.inference_mode():
        prompt = dit.prompt(TEXT, MASK)
    noises = [torch.from_numpy(chunk_noise(0, index, tuple(source.shape))) for index, source in enumerate(sources)]
    return [stream.step(noise, source, prompt).numpy() for noise, source in zip(noises, sources, strict=True)]


@pytest.mark.parametrize("window", [2, 3])
def test_fixed_slots_equal_the_growing_window(window: int) -> None:
    model = replace(MICRO, stream=replace(MICRO.stream, window=window))
    dit = resolve("random:3", model).load_dit(model.dit)
    sources = [graphs.example_latent(model.geometry, model.geometry.chunk(index), seed=5) for index in range(6)]
    slots, growing = through_stage(dit, model, sources), through_sampler(dit, model, sources)
    for found, wanted in zip(slots, growing, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_two_inputs_must_not_share_a_tensor() -> None:
    shared = torch.zeros(2)
    with pytest.raises(BuildError, match="share one tensor"):
        graphs.Graph("denoiser", "steady", torch.nn.Identity(), {"a": shared, "b": shared}, ("c",))


def test_state_is_read_and_written_under_one_name() -> None:
    dit = resolve("random:0", MICRO).load_dit(MICRO.dit)
    steady = next(graph for graph in graphs.denoiser_graphs(dit, MICRO, TEXT, MASK) if graph.variant == "steady")
    read = {name.removesuffix(".in") for name in steady.inputs if name.endswith(".in")}
    written = {name.removesuffix(".out") for name in steady.outputs if name.endswith(".out")}
    assert written < read
    assert {name.split(".")[1] for name in read - written} == {"sink_k", "sink_v"}


def test_an_exported_file_holds_no_trace_of_the_building_machine(tmp_path: Path) -> None:
    dit = resolve("random:0", MICRO).load_dit(MICRO.dit)
    graph = next(graphs.denoiser_graphs(dit, MICRO, TEXT, MASK))
    export(graph, tmp_path / "prompt.onnx")
    engine = load_engine("onnxruntime", tmp_path / "prompt.onnx")
    assert max(measure(graph, engine).values()) < 1e-5
    assert str(Path(graphs.__file__).parent).encode() not in (tmp_path / "prompt.onnx").read_bytes()
    assert ir.load(tmp_path / "prompt.onnx").opset_imports[""] == 23


def test_an_engine_that_is_off_is_refused(tmp_path: Path) -> None:
    dit = resolve("random:0", MICRO).load_dit(MICRO.dit)
    graph = next(graphs.denoiser_graphs(dit, MICRO, TEXT, MASK))
    export(graph, tmp_path / "prompt.onnx")
    with torch.no_grad():
        dit.blocks[1].cross_attn.kv_linear.bias += 0.1
    with pytest.raises(BuildError, match=r"denoiser/prompt: output block01\.text_"):
        measure(graph, load_engine("onnxruntime", tmp_path / "prompt.onnx"))
