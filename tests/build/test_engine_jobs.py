"""Which engines a card and a family get, and what each of them is asked to run."""

from pathlib import Path

import pytest

from sana_build.engine_jobs import engine_jobs, requested
from sana_build.gpus import GPUS, choose_gpu, editions
from sana_build.libraries import obstacle
from sana_build.plan import STAGES
from sana_quant.policy import load_policy

MPQ = load_policy("mpq", 20)


def test_a_card_gets_one_engine_per_variant() -> None:
    jobs = engine_jobs(STAGES, GPUS["rtx5090"], MPQ, 20)
    assert [job.label for job in jobs] == [
        f"{stage}/{variant}" for stage, variants in STAGES.items() for variant in variants
    ]
    assert {job.sms for job in jobs} == {(120,)}
    assert [job.label for job in jobs if job.narrow] == ["denoiser/prompt", "denoiser/first", "denoiser/steady"]


def test_a_family_has_the_denoiser_once_per_policy_and_all_else_once_for_all_cards() -> None:
    jobs = engine_jobs(STAGES, GPUS["rtx"], MPQ, 20)
    steady = {job.name: job.sms for job in jobs if (job.stage, job.variant) == ("denoiser", "steady")}
    assert steady == {"steady-mpq": (120, 121), "steady-fp8": (89,), "steady-bf16": (86,)}
    others = [job for job in jobs if job.stage != "denoiser"]
    assert len(others) == 5
    assert {job.sms for job in others} == {(86, 89, 120, 121)}


def test_a_family_whose_cards_all_run_the_policy_has_one_edition() -> None:
    (edition,) = editions(GPUS["rtx"], load_policy("bf16", 20), 20)
    assert edition.sms == (86, 89, 120, 121)


def test_every_layer_of_the_policy_is_asked_for_in_exactly_one_engine_of_a_chunk() -> None:
    asked = {
        variant: {entry.path: entry.precision for entry in requested(MPQ, variant, 20)}
        for variant in ("prompt", "steady")
    }
    assert len(asked["prompt"]) == 20
    assert len(asked["steady"]) == 180
    assert not asked["prompt"].keys() & asked["steady"].keys()
    counts = [list((asked["prompt"] | asked["steady"]).values()).count(precision) for precision in ("nvfp4", "fp8")]
    assert counts == [108, 92]
    assert asked["steady"]["blocks.5.mlp.inverted_conv"] == "fp8"
    assert asked["steady"]["blocks.6.mlp.inverted_conv"] == "nvfp4"


@pytest.mark.parametrize("gpu", ["cpu", "rtx5090", "rtx"])
def test_rtx_engines_are_built_anywhere(gpu: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert obstacle(GPUS[gpu]) is None


@pytest.mark.parametrize("backend", ["tensorrt", "torch"])
def test_a_data_centre_card_builds_on_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    h200 = choose_gpu("h200", backend)
    monkeypatch.setattr("sana_build.libraries.find_spec", lambda name: object())
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    says = "builds on the card itself and this machine has no H200 SXM; build on the machine with the H200 SXM"
    assert says in (obstacle(h200) or "")
    for capability, ready in (("8.9", False), ("9.0", True)):
        program.write_text(f"#!/bin/sh\necho {capability}\n")
        program.chmod(0o755)
        assert (obstacle(h200) is None) is ready


def test_classic_tensorrt_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sana_build.libraries.find_spec", lambda name: None)
    says = "tensorrt is not installed: run `pip install tensorrt_cu13`; build on the machine with the H200 SXM"
    assert obstacle(choose_gpu("h200", "tensorrt")) == says
