"""A whole build for a card, without the card: real engines of the smallest model, and what later builds reuse."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from micro import MICRO, micro_plan
from sana_build.build import build
from sana_build.gpus import GPUS
from sana_build.plan import Plan
from sana_build.repository import check_repository
from sana_export.checkpoint import resolve
from sana_quant.calibration import Calibration
from sana_quant.groups import layers
from sana_quant.policy import load_policy
from sana_runtime.errors import BuildError, CheckpointError, RepositoryError
from sana_runtime.manifest import Manifest
from sana_runtime.triton_backend import load_stage

pytest.importorskip("tensorrt_rtx")

MODEL = replace(MICRO, dit=replace(MICRO.dit, depth=2, softmax_ratio=0.5))
DEPTH = MODEL.dit.depth


@dataclass(frozen=True)
class BrokenCheckpoint:
    """Weights of which the VAE cannot be read."""

    good: object

    def load_vae(self, *_: object) -> None:
        raise CheckpointError("the VAE is damaged")

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.good, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("gpu")
    amax = {layer.path: 4.0 for layer in layers(DEPTH)}
    Calibration(amax, {"model": "micro"}).write(path / "ranges.json")
    yield path
    shutil.rmtree(path)


def gpu_plan(folder: Path, name: str = "repo", gpu: str = "rtx5090", policy: str = "mpq") -> Plan:
    plan = replace(micro_plan(folder / name), calibration=folder / "ranges.json", cache=folder / "cache")
    weights = resolve("random:0", MODEL)
    return replace(plan, model=MODEL, checkpoint=weights, target=GPUS[gpu], policy=load_policy(policy, DEPTH))


def logged(plan: Plan) -> tuple[Manifest, str]:
    console = Console(record=True, width=160, file=io.StringIO())
    manifest = build(plan, console)
    return manifest, console.export_text()


@pytest.fixture(scope="module")
def built(folder: Path) -> tuple[Path, str]:
    _, text = logged(gpu_plan(folder))
    return folder / "repo", text


def test_the_precision_of_every_layer_is_printed_and_kept(built: tuple[Path, str]) -> None:
    repository, text = built
    assert "precision of the denoiser's layers, policy mpq" in text
    assert "peak memory" in text
    engines = check_repository(repository).engines["denoiser"]
    rows = [row for variant in ("prompt", "steady") for row in engines[variant][0].groups]
    assert sum(row["requested"] for row in rows) == sum(row["found"] for row in rows) == 10 * DEPTH
    assert {row["precision"] for row in rows if row["group"] == "FFN-Input"} == {"fp8", "nvfp4"}
    names = [layer["name"] for layer in json.loads((repository / "denoiser/1/steady.layers.json").read_text())]
    assert len(names) > 50


def test_the_manifest_says_what_was_built_with_what(built: tuple[Path, str]) -> None:
    manifest = check_repository(built[0])
    entry = manifest.engines["denoiser"]["steady"][0]
    assert (manifest.gpu, manifest.policy, entry.policy, entry.sms) == ("rtx5090", "mpq", "mpq", [120])
    assert manifest.versions["tensorrt_rtx"].startswith("1.")
    assert manifest.config["policy"]["groups"]["SA-Q"] == ["nvfp4"] * DEPTH
    assert manifest.config["gdn"] == "native"
    assert not (built[0] / "sana_kernels.zip").exists()
    assert Calibration.read(built[0] / "calibration.json").about == manifest.config["calibration"] == {"model": "micro"}
    assert all(entry.unmeasured and entry.bytes for _, _, entry in manifest.every_engine())
    assert {stage for stage, _, entry in manifest.every_engine() if entry.error} == {"denoiser"}
    text = manifest.engines["text_encoder"]["prompt"][0]
    assert text.inputs == {"input_ids": text.inputs["input_ids"], "attention_mask": text.inputs["attention_mask"]}
    assert entry.inputs["block00.state_kv.in"].startswith("float32")
    assert entry.inputs["block00.tconv.in"].startswith("bfloat16")


def test_the_graphs_of_the_denoiser_are_measured_without_a_gpu(built: tuple[Path, str]) -> None:
    repository, text = built
    engines = check_repository(repository).engines["denoiser"]
    for variant in ("prompt", "first", "steady"):
        (entry,) = engines[variant]
        assert entry.error.keys() == {"graph"}
        assert 0 < entry.error["graph"] < 1e-5
        assert f"{entry.error['graph']:.1e}  graph" in text
        assert entry.unmeasured == "what BF16 and the GPU's kernels round is not measured: needs the GPU"


def test_a_second_build_makes_nothing_again(built: tuple[Path, str], folder: Path) -> None:
    manifest, text = logged(gpu_plan(folder, "again"))
    assert text.count("reused") == 8
    assert "export" not in text
    assert "measure denoiser" not in text
    assert manifest.files == check_repository(built[0]).files


def test_an_engine_that_was_edited_in_a_repository_does_not_come_back(built: tuple[Path, str], folder: Path) -> None:
    # Repositories of one cache share their files.
    plan = replace(gpu_plan(folder, "edited"), cache=shutil.copytree(folder / "cache", folder / "edited-cache"))
    logged(plan)
    engine = folder / "edited/text_encoder/1/prompt.plan"
    engine.chmod(0o644)
    with engine.open("ab") as stream:
        stream.write(b"edit")
    with pytest.raises(RepositoryError, match=r"prompt\.plan was changed after the build"):
        check_repository(folder / "edited")
    _, text = logged(plan)
    assert text.count("reused") == 7
    check_repository(folder / "edited")


def test_a_build_that_ended_in_the_middle_goes_on_where_it_was(built: tuple[Path, str], folder: Path) -> None:
    engines = folder / "cache/engines"
    before = set(engines.iterdir())
    plan = gpu_plan(folder, "resumed", "gb10")
    broken = replace(plan, checkpoint=BrokenCheckpoint(plan.checkpoint))
    with pytest.raises(CheckpointError, match="the VAE is damaged"):
        logged(broken)
    (finished,) = set(engines.iterdir()) - before
    assert not (folder / "resumed").exists()
    written = (finished / "record.json").stat().st_mtime_ns
    with pytest.raises(CheckpointError, match="the VAE is damaged"):
        logged(broken)
    assert set(engines.iterdir()) - before == {finished}
    assert (finished / "record.json").stat().st_mtime_ns == written


def test_a_layer_in_another_precision_fails_the_build_by_name(
    built: tuple[Path, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (built[0] / "manifest.json").read_bytes()
    # As if the library ran every FP8 layer in another type.
    monkeypatch.setattr("sana_build.precision.runs_in", lambda layer, precision: precision != "fp8")
    with pytest.raises(
        BuildError, match=r"denoiser/first: blocks\.0\.attn\.q \(SA-Q\) runs in fp8 and the policy says"
    ):
        logged(gpu_plan(folder, policy="fp8"))
    assert (built[0] / "manifest.json").read_bytes() == before


def test_another_version_of_the_library_is_refused_when_the_server_loads(
    built: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sana_runtime.triton_backend.local_architecture", lambda: 120)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.8.0"))
    version = check_repository(built[0]).versions["tensorrt_rtx"]
    with pytest.raises(
        RepositoryError, match=rf"this machine has 1\.8\.0: run `pip install tensorrt_rtx_cu13=={version}`"
    ):
        load_stage("denoiser", built[0], "1")


REGISTER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/sana_runtime.zip")
from sana_runtime.tensorrt_engine import holds_plugin, register_plugin
root = Path(sys.argv[1])
print(sorted(str(path.relative_to(root)) for path in root.rglob("*.plan") if holds_plugin(path)))
register_plugin(root / "denoiser/1/steady.plan")
import tensorrt_rtx
print(tensorrt_rtx.get_plugin_registry().get_creator("SanaGDN", "1", "") is not None)
print([name for name in ("torch", "triton", "sana_export") if name in sys.modules])
"""


def test_a_repository_with_the_plugin_brings_what_registers_it(
    built: tuple[Path, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    # Tests of the kernels set this, and an interpreted kernel cannot be compiled.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    manifest, text = logged(replace(gpu_plan(folder, "plugin"), gdn="plugin"))
    repository = folder / "plugin"
    check_repository(repository)
    assert text.count("reused") == 6
    assert manifest.config["gdn"] == "plugin"
    steady = manifest.engines["denoiser"]["steady"][0]
    assert "GDN plugin has never run inside an engine" in steady.unmeasured
    assert steady.groups[-1] == {
        "group": "GDN core",
        "precision": "plugin-bf16",
        "requested": 1,
        "found": 1,
        "gemms": 0,
    }
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", REGISTER, str(repository)]
    printed = subprocess.run(command, env=clean, cwd=repository, check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == ["['denoiser/1/first.plan', 'denoiser/1/steady.plan']", "True", "[]"]


def test_a_server_without_the_card_says_so(built: tuple[Path, str]) -> None:
    with pytest.raises(RepositoryError, match=r"built for SM120 \(--gpu rtx5090\) and this machine has no usable GPU"):
        load_stage("denoiser", built[0], "1")
