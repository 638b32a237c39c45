"""A build of the `torch` backend without its card: the same weights and engines, with the references of the kernels."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from micro import micro_plan
from sana_build import build as building
from sana_build import torch_engines
from sana_build.build import build
from sana_build.gpus import GPUS
from sana_build.plan import Plan
from sana_build.precision import Requested, check_stored
from sana_build.repository import check_repository
from sana_gpu.load import load_on
from sana_quant.calibration import Calibration
from sana_quant.groups import layers
from sana_quant.policy import load_policy
from sana_runtime.errors import BuildError
from sana_runtime.manifest import Manifest
from sana_runtime.stages import Request
from sana_runtime.triton_backend import load_stage

DEPTH = 4


def torch_plan(folder: Path, policy: str) -> Plan:
    Calibration({layer.path: 8.0 for layer in layers(DEPTH)}, {"model": "micro"}).write(folder / "ranges.json")
    plan = replace(micro_plan(folder / policy), calibration=folder / "ranges.json", cache=folder / "cache")
    return replace(plan, target=GPUS["h200"], policy=load_policy(policy, DEPTH))


def build_on_cpu(plan: Plan, patch: pytest.MonkeyPatch) -> Manifest:
    patch.setitem(building.BUILDERS, "torch", partial(torch_engines.build_torch_engines, device="cpu"))
    return build(plan, Console(quiet=True))


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sana_gpu.load.load", partial(load_on, device="cpu"))
        patch.setattr("sana_runtime.triton_backend.local_architecture", lambda: 90)
        yield patch


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    plan = torch_plan(tmp_path_factory.mktemp("torch"), "fp8")
    build_on_cpu(plan, patch)
    return plan.output


def test_the_manifest_says_how_far_every_engine_is_and_what_runs_in_which_precision(repository: Path) -> None:
    manifest = check_repository(repository)
    for stage, variant, entry in manifest.every_engine():
        (error,) = entry.error.values()
        assert 0 < error < 0.2, (stage, variant)
        assert (entry.backend, entry.sms) == ("torch", [90])
    rows = manifest.engines["denoiser"]["steady"][0].groups
    assert {row["precision"] for row in rows} == {"fp8"}
    assert sum(row["found"] for row in rows) == 9 * DEPTH


def test_the_server_gives_a_stage_as_many_streams_as_it_holds(repository: Path) -> None:
    assert "max_batch_size: 3" in (repository / "denoiser" / "config.pbtxt").read_text()
    for model in ("text_encoder", "vae_encoder", "vae_decoder", "sana_streaming"):
        assert "max_batch_size: 1" in (repository / model / "config.pbtxt").read_text()


def denoise(stage: object, requests: list[Request]) -> list[np.ndarray]:
    answers = stage.run_batch(requests)  # type: ignore[attr-defined]
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    return [answer["latent"].copy() for answer in answers]


def chunk(manifest: Manifest, stream: str, index: int) -> Request:
    generator = np.random.default_rng(ord(stream) + index)
    text = manifest.config["text"]
    tensors = {
        "source": generator.standard_normal(manifest.geometry.latent_shape(manifest.geometry.chunk(index))),
        "text": np.random.default_rng(ord(stream)).standard_normal((1, text["tokens"], text["width"])),
        "text_mask": np.ones((1, text["tokens"])),
    }
    typed = {name: array.astype(np.float32) for name, array in tensors.items()}
    return Request(typed, {"chunk": index, "seed": ord(stream)}, stream, start=index == 0)


def test_streams_of_different_age_share_the_engine_and_nothing_else(
    repository: Path, patch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(repository)
    alone = {}
    for stream, chunks in (("a", 5), ("b", 3)):
        stage = load_stage("denoiser", repository, "1")
        alone[stream] = [denoise(stage, [chunk(manifest, stream, i)])[0] for i in range(chunks)]
    stage = load_stage("denoiser", repository, "1")
    for index in range(2):
        denoise(stage, [chunk(manifest, "a", index)])
    for index in range(3):
        a, b = denoise(stage, [chunk(manifest, "a", index + 2), chunk(manifest, "b", index)])
        np.testing.assert_allclose(a, alone["a"][index + 2], atol=2e-2)
        np.testing.assert_allclose(b, alone["b"][index], atol=2e-2)


def test_an_engine_that_computes_something_else_fails_the_build(
    tmp_path: Path, patch: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sana_build import torch_parts

    honest = torch_parts.prepare_dit

    def spoiled(*arguments: object) -> dict[str, torch.Tensor]:
        weights = honest(*arguments)  # type: ignore[arg-type]
        return weights | {"x_embedder.weight": weights["x_embedder.weight"] * 1.1}

    monkeypatch.setattr(torch_parts, "prepare_dit", spoiled)
    with pytest.raises(BuildError, match=r"denoiser: chunk 0 of the engine is .* away from FP32"):
        build_on_cpu(torch_plan(tmp_path, "bf16"), monkeypatch)
    assert not (tmp_path / "bf16").exists()


def test_a_weight_stored_in_another_precision_fails_the_build() -> None:
    wanted = [Requested("blocks.0.attn.q", "SA-Q", "fp8"), Requested("blocks.0.attn.k", "SA-K", "bf16")]
    stored = {"blocks.0.attn.q": "fp8", "blocks.0.attn.k": "bf16"}
    assert [row.found for row in check_stored("denoiser", stored, wanted)] == [1, 1]
    with pytest.raises(BuildError, match=r"blocks\.0\.attn\.k .*stored in fp8 and the policy says bf16"):
        check_stored("denoiser", stored | {"blocks.0.attn.k": "fp8"}, wanted)
