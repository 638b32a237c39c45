"""The search on the smallest model: its judge, its workers, going on after a stop, and what it writes and refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from micro import MICRO
from sana_build import search as module
from sana_build import search_workers
from sana_build.judge import Judge, Setting
from sana_build.jury import Jury
from sana_build.rollouts import Machine
from sana_build.search import SearchPlan, check_unchanged, resolve, search
from sana_export import configs
from sana_export.checkpoint import resolve as resolve_checkpoint
from sana_quant.calibration import Calibration
from sana_quant.policy import load_policy
from sana_quant.search.edits import uniform
from sana_quant.search.methods import Budget
from sana_quant.search.store import Store
from sana_runtime.errors import BuildError, ConfigError

DEPTH = MICRO.dit.depth
CPU = Machine("cpu", torch.float32)
FP8, FP4, FP32 = (uniform(precision, DEPTH, "bf16") for precision in ("fp8", "nvfp4", "fp32"))
PROMPTS = ("Turn day into night.", "Add a red ball.")


@pytest.fixture(autouse=True)
def micro_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configs.MODELS, "micro", MICRO)


@pytest.fixture(scope="module")
def setting(clip: Path) -> Setting:
    return Setting(MICRO, resolve_checkpoint("random:0", MICRO), (clip,), PROMPTS, 2, range(2), 0)


@pytest.fixture(scope="module")
def judge(setting: Setting) -> Judge:
    return Judge(setting, CPU)


def test_nothing_quantised_is_the_reference_and_fewer_bits_are_further_from_it(judge: Judge) -> None:
    assert judge.score(FP32).rmse == (0.0, 0.0)
    eight, four = judge.score(FP8), judge.score(FP4)
    assert all(0 < fine < coarse for fine, coarse in zip(eight.rmse, four.rmse, strict=True))


def test_a_policy_leaves_nothing_behind_for_the_next_one(judge: Judge) -> None:
    first = judge.score(FP8)
    judge.score(FP4)
    assert judge.score(FP8) == first


def test_a_stream_has_the_score_it_has_alone(judge: Judge, setting: Setting) -> None:
    alone = replace(setting, prompts=PROMPTS[:1], calibration=judge.calibration)
    found = Judge(alone, CPU).score(FP4).rmse
    assert found == pytest.approx(judge.score(FP4).rmse[:1], rel=1e-3)


def test_frames_are_compared_as_they_are_decoded(judge: Judge) -> None:
    reference, four = judge.inspect(None), judge.inspect(FP4)
    assert reference.score.perceptual == (0.0, 0.0)
    assert all(distance > 0 for distance in four.score.perceptual)
    assert four.stills.shape == (2, MICRO.height, MICRO.width, 3)
    assert judge.sources().shape == four.stills.shape
    assert (four.stills != reference.stills).any()


def test_prompts_take_the_windows_of_the_clips_in_turn(setting: Setting) -> None:
    three = replace(setting, prompts=("a", "b", "c"))
    assert three.streams() == [("a", 0, 0), ("b", 0, 1), ("c", 0, 0)]
    both = replace(three, clips=setting.clips * 2)
    assert both.streams() == [("a", 0, 0), ("b", 1, 0), ("c", 0, 1)]
    assert replace(both, prompts=("a",)).streams() == [("a", 0, 0), ("a", 1, 0)]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"chunks": 1}, {"prompts": ("x",)}, {"windows": range(1)}, {"calibration": Calibration({"a": 1.0})}],
    ids=str,
)
def test_a_score_belongs_to_what_it_was_measured_on(setting: Setting, change: dict[str, Any]) -> None:
    assert replace(setting, **change).key() != setting.key()
    assert replace(setting).key() == setting.key()


def test_several_processes_measure_what_one_does(judge: Judge, setting: Setting, tmp_path: Path) -> None:
    policies = [FP8, FP4]
    with Jury(setting, 2, tmp_path, Store(tmp_path / "trials.jsonl"), lambda label: None) as jury:
        scores = jury.measure(policies)
    for policy, score in zip(policies, scores, strict=True):
        assert score.rmse == pytest.approx(judge.score(policy).rmse, rel=1e-3)


def plan_in(output: Path, method: str = "additive", **options: Any) -> SearchPlan:
    arguments = {"checkpoint": "random:0", "clips": (), "prompts": PROMPTS, "chunks": 1, "workers": 1} | options
    return resolve("micro", "rtx5090", output, method=method, **arguments)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", Budget(random=3, short_list=3, rounds=1, per_round=2))


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: object) -> None:
        raise AssertionError("everything is known, so no worker is needed")

    return lambda: monkeypatch.setattr(search_workers, "start", refuse)


def test_a_search_writes_its_report_and_goes_on_where_it_was(
    tmp_path: Path, small: None, no_worker: Callable[[], None]
) -> None:
    output, console = tmp_path / "found", Console(quiet=True)
    outcome = search(plan_in(output), console)
    figures = json.loads((output / "results.json").read_text())
    picks = figures["picks"]
    assert picks["found"]["cost"] <= min(picks[name]["cost"] for name in ("fp8", "fp4", "mpq"))
    assert picks["fast"]["rmse"] <= picks["mpq"]["rmse"]
    assert len(figures["trials"]) == len(outcome.study.trials)
    for name in ("found", "fast"):
        assert load_policy(str(output / "policies" / f"{name}.toml"), DEPTH).groups == outcome.picks[name].policy.groups
    report = (output / "report.md").read_text()
    for picture in ("groups.png", "predicted.png", "front.png", "strips.jpg"):
        assert f"({picture})" in report
        assert (output / picture).stat().st_size > 1000
    no_worker()
    search(plan_in(output), console)
    again = json.loads((output / "results.json").read_text())
    assert {**again, "seconds": 0} == {**figures, "seconds": 0}


def test_a_search_that_was_killed_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    score = Judge.score

    def until_the_fourth(judge: Judge, policy: Any) -> Any:
        measured.append(policy.name)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return score(judge, policy)

    monkeypatch.setattr(Judge, "score", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        search(plan_in(tmp_path, "paper"), Console(quiet=True))
    kept = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(kept) == 3
    outcome = search(plan_in(tmp_path, "paper"), Console(quiet=True))
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert lines[:3] == kept
    assert len(set(keys)) == len(keys) > len(outcome.study.trials)
    assert outcome.errors is None


@pytest.mark.parametrize("gpu", ["cpu", "rtx3090", "rtx4090", "h200"])
def test_a_card_without_fp4_leaves_nothing_to_search(gpu: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not run nvfp4.*choose one of rtx5090"):
        resolve("micro", gpu, tmp_path, None, (), (), 1, "additive", 1)


def test_what_cannot_work_is_refused_before_any_work(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(ConfigError, match=r"broken\.mp4"):
        plan_in(tmp_path / "new", clips=(broken,))
    with pytest.raises(ConfigError, match=r"is not empty and has no trials\.jsonl"):
        plan_in(tmp_path)
    with pytest.raises(ConfigError, match="unknown --method 'best': choose one of additive, paper"):
        plan_in(tmp_path / "new", "best")
    with pytest.raises(ConfigError, match="at least 1"):
        plan_in(tmp_path / "new", chunks=0)
    assert not (tmp_path / "new").exists()


def test_weights_that_change_during_a_search_are_noticed(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "new")
    check_unchanged(plan, plan.setting.checkpoint.identity())
    with pytest.raises(BuildError, match="changed during the search"):
        check_unchanged(plan, plan_in(tmp_path / "new", checkpoint="random:1").setting.checkpoint.identity())
