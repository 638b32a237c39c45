import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sana_build.cli import main
from sana_build.gpus import GPUS
from sana_build.plan import STAGES
from sana_build.plan_report import plan_report
from sana_build.plan_tables import render
from sana_build.sizes import GEMMA_2_2B, engine_bytes, steady_chunk, text_parameters, vae_parameters
from sana_export.configs import MODELS, SANA_STREAMING, TINY
from sana_export.text import gemma
from sana_export.vae import VAE
from sana_quant.cost import roofline
from sana_quant.policy import load_policy
from sana_quant.work import transformer_work
from sana_runtime.errors import CheckpointError, ConfigError

MPQ = ("plan", "--model", "sana-streaming", "--policy", "mpq", "--gpu", "rtx5090")


def shown(*names: str | None) -> str:
    stream = io.StringIO()
    render(plan_report(*names), Console(file=stream, width=160))
    return stream.getvalue()


def test_the_json_holds_the_papers_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*MPQ, "--json"])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    four, eight = report["precisions"]
    assert (four["precision"], four["layers"]) == ("nvfp4", 108)
    assert (eight["precision"], eight["layers"]) == ("fp8", 92)
    assert (round(four["padded_params_m"]), round(four["padded_gflop"], -1)) == (1258, 6640)
    assert (round(100 * four["param_share"]), round(100 * four["flop_share"])) == (62, 67)
    assert round(report["ideal_speedup"]["padded"], 2) == 3.02
    assert report["groups"]["FFN-Input"] == {"fp8": "0-5", "nvfp4": "6-19"}
    assert report["groups"]["SA-Q"] == {"nvfp4": "0-19"}
    assert report["chunk"] == {"frames": 24, "tokens": 2640, "keys": 9680, "text_tokens": 300, "passes": 5}


def test_the_parts_add_up() -> None:
    report = plan_report("sana-streaming", "mpq", "rtx5090", None)
    parts = [*report["precisions"], report["outside"]]
    assert sum(part["params_m"] for part in parts) == pytest.approx(2159.177648)
    assert sum(part["gflop"] for part in parts) == pytest.approx(11586.5, abs=0.05)
    (card,) = report["cards"]
    assert sum(card["parts_ms"].values()) == pytest.approx(card["pass_ms"])
    assert card["chunk_ms"] == pytest.approx(5 * card["pass_ms"])
    denoiser = {each["variant"]: each["bytes"] for each in report["engines"] if each["stage"] == "denoiser"}
    assert denoiser["prompt"] + denoiser["steady"] == pytest.approx(sum(part["bytes"] for part in parts), abs=2)
    assert report["engine_bytes"] == sum(engine["bytes"] for engine in report["engines"])


def test_what_runs_once_per_prompt_is_in_no_time() -> None:
    policy, rates = load_policy("mpq", 20), GPUS["rtx5090"].rates
    work = transformer_work(SANA_STREAMING.dit, steady_chunk(SANA_STREAMING))
    every, prompt = (roofline(part, policy, rates) for part in (work, [each for each in work if each.per_prompt]))
    (card,) = plan_report("sana-streaming", "mpq", "rtx5090", None)["cards"]
    assert prompt > 1e-4
    assert card["pass_ms"] == pytest.approx(1e3 * (every - prompt))


def test_the_tables_say_what_the_json_says() -> None:
    text = shown("sana-streaming", "mpq", "rtx5090", None)
    for part in ("1257.6", "6639.9", "3.02 over BF16", "fp8: 0-5; nvfp4: 6-19", "2640 tokens over 9680 keys"):
        assert part in text
    assert "1550.0" in text
    assert "NVIDIA RTX Blackwell whitepaper" in text
    assert "`sana-build` with these options and --output DIR, without `plan`, builds this" in text
    assert "a plan only, for h200 cannot be built here: " in shown("sana-streaming", None, "h200", None)


def test_a_plan_for_the_cpu_says_what_builds_it() -> None:
    text = shown("tiny", None, "cpu", None)
    assert "with these options and --output DIR, without `plan`, builds this" in text
    assert "fp32: 0-7" in text


def test_a_family_gets_an_engine_per_policy_and_a_time_per_card() -> None:
    report = plan_report("sana-streaming", "mpq", "rtx", None)
    policies = {card["name"]: card["policy"] for card in report["cards"]}
    assert policies["rtx4090"] == "fp8"
    assert policies["rtx3090"] == "bf16"
    assert {policy for card, policy in policies.items() if card not in ("rtx4090", "rtx3090")} == {"mpq"}
    steady = {
        engine["runs"]: engine["cards"]
        for engine in report["engines"]
        if (engine["stage"], engine["variant"]) == ("denoiser", "steady")
    }
    assert steady == {
        "mpq": ["rtx5090", "rtx5080", "rtx5070ti", "rtxpro6000", "gb10"],
        "fp8": ["rtx4090"],
        "bf16": ["rtx3090"],
    }
    assert sum(engine["stage"] == "vae_decoder" for engine in report["engines"]) == 2


def test_a_time_that_cannot_be_known_is_left_out() -> None:
    (card,) = plan_report("sana-streaming", "mpq", "gb10", None)["cards"]
    assert card["pass_ms"] is card["chunk_ms"] is None
    assert card["tensor_tflops"]["nvfp4"]["value"] == 500


def test_a_lower_precision_is_faster_and_smaller() -> None:
    reports = [plan_report("sana-streaming", policy, "rtx5090", None) for policy in ("bf16", "fp8", "mpq", "fp4")]
    times = [report["cards"][0]["chunk_ms"] for report in reports]
    sizes = [report["engine_bytes"] for report in reports]
    assert times == sorted(times, reverse=True)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("sana", None, "cpu", None), "unknown --model 'sana'"),
        (("sana-streaming-bidirectional", None, "cpu", None), "cannot stream"),
        (("tiny", None, "gtx280", None), "unknown --gpu 'gtx280'"),
        (("tiny", "fp4", "rtx4090", None), "the nearest it can is fp8"),
    ],
)
def test_a_plan_refuses_what_a_build_would(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_report(*names)


def test_a_checkpoint_is_looked_at_only_when_named(tmp_path: Path) -> None:
    assert "not looked at" in plan_report("tiny", None, "cpu", None)["checkpoint"]
    assert plan_report("tiny", None, "cpu", "random:3")["checkpoint"] == "random weights, seed 3, fits the model"
    with pytest.raises(CheckpointError, match="holds no"):
        plan_report("tiny", None, "cpu", str(tmp_path))


def test_a_plan_loads_no_torch_and_answers_at_once() -> None:
    program = f"import sys; from sana_build.cli import main; main({list(MPQ)!r})"
    check = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {program}"
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2
    assert ended.stdout.endswith("False\n")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_parameters_of_the_vae_are_those_of_the_module(name: str) -> None:
    with torch.device("meta"):
        vae = VAE(MODELS[name].vae)
    assert vae_parameters(MODELS[name].vae) == sum(parameter.numel() for parameter in vae.parameters())


def test_the_parameters_of_the_text_encoder_are_those_of_the_module() -> None:
    with torch.device("meta"):
        tiny, released = gemma(TINY.text.gemma), gemma(GEMMA_2_2B)
    for config, encoder in ((TINY.text, tiny), (SANA_STREAMING.text, released)):
        assert text_parameters(config) == sum(parameter.numel() for parameter in encoder.parameters())


def test_the_engines_are_as_large_as_planned(micro_repository: Path) -> None:
    """Every engine holds its weights, and graph and constants beside them: about 1 MB, whatever the model."""
    from micro import MICRO

    planned = engine_bytes(MICRO, load_policy("fp32", MICRO.dit.depth))
    assert planned.keys() == {(stage, variant) for stage, variants in STAGES.items() for variant in variants}
    for (stage, variant), size in planned.items():
        built = (micro_repository / stage / "1" / f"{variant}.onnx").stat().st_size
        assert size <= built <= size + 1.2e6, (stage, variant, size, built)
