"""The engine on a GPU, against a stand-in for the library: what it binds, copies, keeps and refuses.

No test here runs on a GPU: that the library behaves like its stand-in is not shown.
"""

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes.engines import FRAMES, LATENT, MANIFEST, request
from fakes.tensorrt_library import KERNELS, CudaGraphStrategy, Library, write_plan
from sana_runtime.engine import load_engine
from sana_runtime.errors import EngineError, RepositoryError
from sana_runtime.libraries import check_library
from sana_runtime.memory import TorchMemory
from sana_runtime.stages import VAEEncoderStage
from sana_runtime.tensorrt_engine import TensorRTEngine


def accumulate(feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    total = feeds["total.in"].float() + feeds["x"].sum()
    return {"y": total.expand(2), "total.out": total}


Load = Callable[[], TensorRTEngine]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library(accumulate=accumulate, encode_first=encode_first, encode_steady=encode_steady)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


@pytest.fixture
def load(library: Library, tmp_path: Path) -> Load:
    tensors = {
        "x": ("input", "FLOAT", (2, 2)),
        "total__in": ("input", "BF16", (1,)),
        "y": ("output", "FLOAT", (2,)),
        "total__out": ("output", "BF16", (1,)),
    }
    plan = write_plan(tmp_path / "engine.plan", "accumulate", **tensors)
    return lambda: TensorRTEngine(plan, "tensorrt_rtx", TorchMemory("cpu"), tmp_path / "kernels")


def ones() -> np.ndarray:
    return np.ones((2, 2), np.float32)


def zero() -> Tensor:
    return torch.zeros(1, dtype=torch.bfloat16)


def test_an_engine_says_what_it_reads_and_writes(load: Load) -> None:
    engine = load()
    assert [str(spec) for spec in engine.inputs] == ["float32[2,2]", "bfloat16[1]"]
    assert {spec.name: str(spec) for spec in engine.outputs} == {"y": "float32[2]", "total.out": "bfloat16[1]"}


def test_host_arrays_and_device_tensors_are_fed_alike(load: Load) -> None:
    engine = load()
    from_host = engine.run({"x": ones(), "total.in": zero()})
    from_device = engine.run({"x": torch.ones(2, 2), "total.in": zero()})
    assert from_host["y"].tolist() == from_device["y"].tolist() == [4.0, 4.0]
    assert from_host["total.out"].dtype == torch.bfloat16


def test_state_outlives_the_next_call(load: Load) -> None:
    engine = load()
    first = engine.run({"x": ones(), "total.in": zero()})
    second = engine.run({"x": ones(), "total.in": first["total.out"]})
    engine.run({"x": 100 * ones(), "total.in": zero()})
    assert (first["total.out"].item(), second["total.out"].item()) == (4.0, 8.0)


def test_tensors_keep_their_places_so_that_a_graph_stays_valid(load: Load, library: Library) -> None:
    engine = load()
    context = library.loaded[0].context
    assert context is not None
    before = dict(context.addresses)
    for _ in range(3):
        engine.run({"x": ones(), "total.in": zero()})
    assert context.addresses == before
    assert context.config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert context.runs == 4


def test_kernels_are_compiled_once_per_card_before_the_first_stream(
    load: Load, library: Library, tmp_path: Path
) -> None:
    for _ in range(2):
        load()
    assert [engine.context.compiled for engine in library.loaded] == [1, 0]
    (file,) = (tmp_path / "kernels").iterdir()
    assert file.read_bytes() == KERNELS
    file.write_bytes(b"of another card")
    load()
    assert library.loaded[2].context.compiled == 1
    assert file.read_bytes() == KERNELS


def test_kernels_that_cannot_be_kept_are_compiled_again(library: Library, load: Load, tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file where the folder should be")
    assert load().run({"x": ones(), "total.in": zero()})["y"].tolist() == [4.0, 4.0]


def test_wrong_feeds_are_refused_by_name(load: Load) -> None:
    engine = load()
    with pytest.raises(EngineError, match=r"tensor total\.in has dtype float32, the engine takes bfloat16"):
        engine.run({"x": ones(), "total.in": torch.zeros(1)})
    with pytest.raises(EngineError, match=r"missing \['total\.in'\]"):
        engine.run({"x": ones()})
    with pytest.raises(EngineError, match=r"x has shape \[1, 2\], the engine takes \[2, 2\]"):
        engine.run({"x": torch.zeros(1, 2), "total.in": zero()})


def test_a_failed_run_is_an_error_and_not_the_last_result(load: Load, library: Library) -> None:
    engine = load()
    library.loaded[0].failing = True
    with pytest.raises(EngineError, match="failed on the GPU"):
        engine.run({"x": ones(), "total.in": zero()})


def test_a_file_that_is_not_for_this_card_is_refused(library: Library, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "engine.plan", "of another card")
    with pytest.raises(EngineError, match="cannot be loaded on this machine"):
        TensorRTEngine(plan, "tensorrt_rtx", TorchMemory("cpu"), tmp_path)


REGISTERS = "import tensorrt_rtx\ndef register(): tensorrt_rtx.plugins.add('SanaGDN')\n"
REFUSES = "def register(): raise ValueError('link it there')\n"


@pytest.fixture
def with_plugin(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], TensorRTEngine]]:
    """Load an engine that holds a plugin, from a repository whose package is the given source."""
    for name in kernel_modules():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "denoiser" / "1"
    folder.mkdir(parents=True)
    library.programs["double"] = lambda feeds: {"y": 2 * feeds["x"]}
    tensors = {"x": ("input", "FLOAT", (1,)), "y": ("output", "FLOAT", (1,))}
    plan = write_plan(folder / "steady.plan", "double", "SanaGDN", **tensors)
    (folder / "steady.layers.json").write_text(json.dumps([{"type": "gemm"}, {"type": "custom_layer"}]))

    def load(source: str) -> TensorRTEngine:
        if source:
            with zipfile.ZipFile(tmp_path / "sana_kernels.zip", "w") as package:
                package.writestr("sana_kernels/__init__.py", "")
                package.writestr("sana_kernels/plugin.py", source)
        return TensorRTEngine(plan, "tensorrt_rtx", TorchMemory("cpu"), tmp_path / "kernels")

    yield load
    for name in kernel_modules():
        del sys.modules[name]


def kernel_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "sana_kernels"]


def test_an_engine_with_a_plugin_is_read_after_the_plugin_is_registered(
    with_plugin: Callable[[str], TensorRTEngine],
) -> None:
    assert with_plugin(REGISTERS).run({"x": np.ones(1, np.float32)})["y"].tolist() == [2.0]


def test_a_plugin_that_is_missing_or_refuses_the_machine_is_one_sentence(
    with_plugin: Callable[[str], TensorRTEngine],
) -> None:
    with pytest.raises(
        EngineError, match=r"steady\.plan holds our GDN plugin and .*sana_kernels\.zip is missing: build"
    ):
        with_plugin("")
    with pytest.raises(EngineError, match=r"the GDN plugin that engine .* holds cannot be registered: link it there$"):
        with_plugin(REFUSES)


def test_another_version_of_the_library_is_refused_with_the_command_that_fixes_it(library: Library) -> None:
    check_library("tensorrt_rtx", "1.7.1.116")
    with pytest.raises(RepositoryError, match=r"built with tensorrt_rtx 1\.6 and this machine has 1\.7\.1\.116: run "):
        check_library("tensorrt_rtx", "1.6")
    with pytest.raises(RepositoryError, match=r"run `pip install tensorrt_cu13==11\.4`"):
        check_library("tensorrt", "11.4")


def encode_first(feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    seen = feeds["frames"].float().mean()
    return {"source": seen.expand(LATENT["first"]), "total.out": seen.reshape(1)}


def encode_steady(feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    total = feeds["total.in"].float() + feeds["frames"].float().mean()
    return {"source": total.expand(LATENT["steady"]), "total.out": total}


def encoder_stage(folder: Path) -> VAEEncoderStage:
    engines = {}
    for variant, state in (("first", {}), ("steady", {"total__in": ("input", "BF16", (1,))})):
        tensors = {
            "frames": ("input", "UINT8", FRAMES[variant]),
            **state,
            "source": ("output", "FLOAT", LATENT[variant]),
            "total__out": ("output", "BF16", (1,)),
        }
        plan = write_plan(folder / f"{variant}.plan", f"encode_{variant}", **tensors)
        engines[variant] = TensorRTEngine(plan, "tensorrt_rtx", TorchMemory("cpu"), folder / "kernels")
    return VAEEncoderStage(engines, MANIFEST)


def encode(stage: VAEEncoderStage, index: int, value: int, correlation: str) -> float:
    frames = np.full(FRAMES["steady" if index else "first"], value, np.uint8)
    source = stage.run(request(index, correlation, frames=frames))["source"]
    assert isinstance(source, np.ndarray)
    return float(source.max())


def test_streams_on_one_gpu_engine_do_not_leak_into_each_other(library: Library, tmp_path: Path) -> None:
    stage = encoder_stage(tmp_path)
    alone = [encode(stage, index, 2, "alone") for index in range(4)]
    mixed = []
    for index in range(4):
        mixed.append(encode(stage, index, 2, "a"))
        encode(stage, index, 50, "b")
    assert alone == mixed == [2.0, 4.0, 6.0, 8.0]


def test_engines_are_loaded_by_the_name_of_their_library(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sana_runtime.tensorrt_engine.TorchMemory", lambda _: TorchMemory("cpu"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = write_plan(tmp_path / "e.plan", "accumulate", x=("input", "FLOAT", (1,)), y=("output", "FLOAT", (2,)))
    library.programs["accumulate"] = lambda feeds: {"y": feeds["x"].expand(2)}
    assert load_engine("tensorrt_rtx", plan).run({"x": np.ones(1, np.float32)})["y"].tolist() == [1.0, 1.0]
    assert len(list((tmp_path / "sana-runtime").iterdir())) == 1
