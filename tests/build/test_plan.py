from pathlib import Path

import pytest

from sana_build.plan import check_output, resolve
from sana_runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model": "sana"}, "unknown --model 'sana': choose one of sana-streaming, sana-streaming-bidirectional, tiny"),
        ({"gpu": "gtx280"}, "unknown --gpu 'gtx280': choose one of a100, b200, cpu, gb10"),
        ({"policy": "int3"}, "unknown --policy 'int3': choose one of bf16"),
        (
            {"policy": "mpq"},
            "--gpu cpu cannot run --policy mpq, which needs bf16, fp8, nvfp4: the nearest it can is fp32",
        ),
        ({"gpu": "rtx4090", "policy": "fp4"}, "needs nvfp4: the nearest it can is fp8"),
        ({"gpu": "rtx5090", "policy": "fp32"}, "needs fp32: the nearest it can is mpq"),
        ({"gpu": "h200"}, "--gpu h200 cannot be built here"),
        ({"calibration": Path("no.json")}, "calibration no.json cannot be read"),
        ({"streams": 0}, "--streams is 0"),
        ({"gpu": "rtx", "gdn": "cuda"}, "unknown --gdn 'cuda': choose one of native, plugin"),
        ({"gdn": "plugin"}, "--gdn plugin is for TensorRT-RTX and --gpu cpu runs onnxruntime: use native"),
        ({"model": "sana-streaming-bidirectional"}, "cannot stream"),
    ],
)
def test_a_wrong_name_is_refused_with_the_names_there_are(tmp_path: Path, changed: dict, says: str) -> None:
    choices = {
        "model": "tiny",
        "checkpoint": None,
        "gpu": "cpu",
        "policy": None,
        "output": tmp_path / "r",
        "streams": 1,
    }
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        resolve(**{**choices, **changed})


def test_a_plan_says_what_will_be_built(tmp_path: Path) -> None:
    from rich.console import Console

    plan = resolve("tiny", None, "cpu", None, tmp_path / "r", 3)
    console = Console(record=True, width=160)
    console.print(plan.table())
    text = console.export_text()
    for part in (
        "tiny",
        "shipped:tiny",
        "fp32",
        "256x144",
        "chunks of 33, then 24",
        "3 at once",
        str(tmp_path / "r"),
    ):
        assert part in text


def test_an_output_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(ConfigError, match=r"not empty and has no manifest\.json"):
        check_output(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        check_output(tmp_path / "holiday.txt")
