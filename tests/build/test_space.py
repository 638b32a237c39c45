"""Room on the disks is looked at before a build begins."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from micro import micro_plan
from sana_build.engine_jobs import EngineJob, engine_jobs
from sana_build.gpus import GPUS
from sana_build.plan import STAGES, Plan
from sana_build.sizes import engine_bytes
from sana_build.space import check_space
from sana_export.configs import SANA_STREAMING
from sana_quant.policy import load_policy
from sana_runtime.errors import ConfigError

Usage = namedtuple("Usage", "total used free")
MPQ = load_policy("mpq", 20)


@pytest.fixture
def production(tmp_path: Path) -> Plan:
    gpu = GPUS["rtx5090"]
    return replace(
        micro_plan(tmp_path / "repo"), model=SANA_STREAMING, target=gpu, policy=MPQ, cache=tmp_path / "cache"
    )


def jobs() -> list[EngineJob]:
    return engine_jobs(STAGES, GPUS["rtx5090"], MPQ, 20)


def has(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1e12, 1e12 - free, free))


def test_engines_and_the_graphs_of_the_largest_stage_have_to_fit(
    production: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = engine_bytes(SANA_STREAMING, MPQ)
    needed = 1.1 * (sum(sizes.values()) + sizes["text_encoder", "prompt"])
    has(monkeypatch, needed + 1)
    check_space(production, jobs(), jobs())
    has(monkeypatch, needed - 1)
    with pytest.raises(ConfigError, match=r"--cache .*cache needs room for about 20\.\d GB and its disk has"):
        check_space(production, jobs(), jobs())


def test_engines_that_are_there_need_no_room(production: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 0)
    check_space(production, jobs(), [])


def test_an_output_on_another_disk_needs_room_for_a_copy(production: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 0)
    monkeypatch.setattr("sana_build.space._device", lambda folder: folder.name)
    with pytest.raises(ConfigError, match=r"--output .*repo needs room for about 14\.\d GB"):
        check_space(production, jobs(), [])
