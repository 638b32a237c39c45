"""What a user gets for bad input on the command line: one sentence, exit code 1, and no output folder.

The rest is tested where it belongs: a full disk in test_space, test_stage_process and test_tensorrt_build, a
killed build in test_folders and test_gpu_build, another library version in test_gpu_build.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sana_build.cli import main
from sana_build.folders import under_construction
from sana_export.checkpoint import write_random
from sana_export.configs import TINY

Refused = Callable[..., str]

GROUP = 'default = "fp8"\n[groups]\nSA-X = "nvfp4"\n'
PRECISION = 'default = "fp8"\n[groups]\nSA-Q = { deep = "int4" }\n'
BLOCKS = 'default = "fp8"\n[groups]\nSA-Q = { 3-90 = "nvfp4" }\n'


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run a command in an empty folder, where it has to fail; returns its sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 1
        captured = capsys.readouterr().err
        assert captured.startswith("sana-build: ")
        assert captured.count("\n") == 1
        assert not Path("out").exists()
        return captured.removeprefix("sana-build: ")

    return run


def build(*options: str) -> tuple[str, ...]:
    chosen = ("--model", "tiny", "--checkpoint", "random:0", "--gpu", "rtx5090", "--output", "out", "--cache", "cache")
    return *chosen, *options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--gpu", "rtx6090"), "unknown --gpu 'rtx6090': choose one of "),
        (
            ("--policy", "int8"),
            "unknown --policy 'int8': choose one of bf16, fp32, fp4, fp8, mpq, or name a .toml file",
        ),
        (("--policy", "no.toml"), "policy no.toml cannot be read (No such file or directory): name an existing"),
        (
            ("--gpu", "rtx4090", "--policy", "fp4"),
            "--gpu rtx4090 cannot run --policy fp4, which needs nvfp4: the nearest",
        ),
        (("--gpu", "rtx3090", "--policy", "fp8"), "which needs fp8: the nearest it can is bf16"),
        (("--calibration", "no.json"), "calibration no.json cannot be read"),
        (("--checkpoint", "nowhere"), "checkpoint nowhere does not exist: name a file"),
        (("--output", "/proc/sana"), "/proc/sana cannot be written (No such file or directory): name another folder"),
    ],
)
def test_a_build_that_cannot_be_says_why(refused: Refused, options: tuple[str, ...], says: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert says in refused(*build(*options))


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (GROUP, "policy own.toml has the group 'SA-X': allowed are SA-Q, SA-K"),
        (PRECISION, "policy own.toml, group SA-Q, has deep = 'int4': allowed are fp32, bf16, fp8, nvfp4"),
        (BLOCKS, "policy own.toml, group SA-Q, has the blocks '3-90', but the model has the blocks 0-7"),
        ("default = ", "policy own.toml is not TOML"),
    ],
)
def test_a_wrong_entry_of_a_policy_is_named(refused: Refused, policy: str, says: str) -> None:
    Path("own.toml").write_text(policy)
    assert says in refused(*build("--policy", "own.toml"))
    assert says in refused("plan", "--model", "tiny", "--gpu", "rtx5090", "--policy", "own.toml")


def test_a_checkpoint_of_other_shapes_is_named_with_them(refused: Refused) -> None:
    odd = replace(TINY, dit=replace(TINY.dit, hidden=204))
    write_random(odd, 0, Path("odd"))
    says = "is a transformer of hidden width 204, the model's is 192: choose the model that the file was made for"
    assert says in refused(*build("--checkpoint", "odd"))


@pytest.mark.parametrize("command", ["calibrate", "search"])
def test_a_clip_that_is_no_video_is_named(refused: Refused, command: str) -> None:
    Path("broken.mp4").write_bytes(b"no video")
    options = {"calibrate": ("--output", "ranges.json"), "search": ("--gpu", "rtx5090", "--output", "out")}[command]
    says = refused(command, "--model", "tiny", "--clip", "broken.mp4", *options)
    assert "--clip broken.mp4 cannot be read as a video (Invalid data found" in says
    assert not Path("ranges.json").exists()


def test_a_second_build_into_one_folder_is_refused(refused: Refused) -> None:
    pytest.importorskip("tensorrt_rtx")
    with under_construction(Path("out")):
        says = refused(*build("--policy", "bf16"))
    assert says == "another build is writing out: wait for it, or name another folder\n"


def test_a_disk_without_room_is_refused_before_work(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1e6))
    says = refused(*build("--policy", "bf16"))
    assert "--cache cache needs room for about " in says
    assert " and its disk has 1 MB: free some, or name a folder on another disk" in says
