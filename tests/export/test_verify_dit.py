"""The golden sections of the transformer pass, and fail as they should."""

import json
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sana_export.compare import relative_error
from sana_export.golden import group, group_name
from sana_export.verify import Check, report, run
from sana_runtime.errors import BuildError, CheckpointError, SanaError

Edit = Callable[[dict[str, np.ndarray]], None]


def copy_with(golden: Path, folder: Path, name: str, edit: Edit) -> Path:
    """A golden folder in which one .npz file is edited."""
    for path in golden.iterdir():
        (folder / path.name).symlink_to(path)
    with np.load(golden / name) as archive:
        arrays = {key: archive[key] for key in archive.files}
    edit(arrays)
    (folder / name).unlink()
    np.savez(folder / name, **arrays)
    return folder


def failures(folder: Path, section: str) -> list[str]:
    return [check.worst for check in run(folder, section) if not check.ok]


@pytest.mark.parametrize("section", ["a", "b", "c", "d", "e", "f", "g", "i"])
def test_section_passes(golden: Path, section: str) -> None:
    checks = list(run(golden, section))
    assert checks
    assert not [check for check in checks if not check.ok]
    assert {check.section for check in checks} == {section}


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("a_bidirectional_forward.npz", "tap.block2.mlp"),
        ("b_streaming_rollout.npz", "chunk2.cache.block3.k"),
        ("c_gdn_layer.npz", "init.core.den_bwd_flipped"),
        ("d_softmax_layer_and_blocks.npz", "gdn_block.out_second"),
        ("e_ffn.npz", "multi.tconv_out"),
        ("g_bidirectional_sampler.npz", "call3.v"),
        ("i_tables.npz", "stream_sigmas_6"),
    ],
)
def test_one_changed_array_is_one_failure(golden: Path, tmp_path: Path, file: str, array: str) -> None:
    def nudge(arrays: dict[str, np.ndarray]) -> None:
        arrays[array].flat[-1] += 2e-3 * np.abs(arrays[array]).max()

    assert failures(copy_with(golden, tmp_path, file, nudge), file[0]) == [array]


def test_nan_and_another_shape_fail(golden: Path, tmp_path: Path) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays["first.out"][0, 0, 0] = math.nan
        arrays["second.out"] = arrays["second.out"][:, :-1]

    assert failures(copy_with(golden, tmp_path, "e_ffn.npz", spoil), "e") == ["first.out", "second.out"]


def test_an_array_that_no_check_reads_fails(golden: Path, tmp_path: Path) -> None:
    folder = copy_with(golden, tmp_path, "e_ffn.npz", lambda arrays: arrays.update(third=np.zeros(2)))
    assert failures(folder, "e") == ["third (not covered)"]


def test_a_missing_array_is_named(golden: Path, tmp_path: Path) -> None:
    folder = copy_with(golden, tmp_path, "e_ffn.npz", lambda arrays: arrays.pop("second.out"))
    with pytest.raises(SanaError, match=r"e_ffn.npz has no array second\.out"):
        list(run(folder, "e"))


def test_missing_and_unknown_files_are_named(golden: Path, tmp_path: Path) -> None:
    folder = copy_with(golden, tmp_path, "e_ffn.npz", lambda arrays: None)
    (folder / "e_ffn.npz").rename(folder / "z_other.npz")
    with pytest.raises(BuildError, match=r"missing e_ffn\.npz, unknown z_other\.npz"):
        list(run(folder))


def test_a_damaged_file_is_named(golden: Path, tmp_path: Path) -> None:
    folder = copy_with(golden, tmp_path, "e_ffn.npz", lambda arrays: None)
    (folder / "e_ffn.npz").write_bytes(b"no archive")
    with pytest.raises(BuildError, match=r"e_ffn\.npz cannot be read"):
        list(run(folder, "e"))


def test_weights_of_another_architecture_are_refused(golden: Path, tmp_path: Path) -> None:
    folder = copy_with(golden, tmp_path, "dit_streaming_weights.npz", lambda arrays: arrays.pop("blocks.1.attn.A_log"))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.A_log is missing"):
        list(run(folder, "e"))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"config\.json cannot be read"):
        list(run(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gdn_eps": 1e-6}, "gdn_eps = 1e-06, ours is 1e-08"),
        ({"depth": None}, "no field depth"),
    ],
)
def test_a_config_of_another_model_is_refused(golden: Path, tmp_path: Path, change: dict, message: str) -> None:
    folder = copy_with(golden, tmp_path, "e_ffn.npz", lambda arrays: None)
    config = json.loads((golden / "config.json").read_text())
    config["dit"] = {name: value for name, value in (config["dit"] | change).items() if value is not None}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BuildError, match=message):
        list(run(folder, "e"))


def test_relative_error() -> None:
    wanted = torch.tensor([0.0, -4.0])
    assert relative_error(torch.tensor([1.0, -4.0]), wanted) == 0.25
    assert relative_error(torch.tensor([[1.0, -4.0]]), wanted) == 0.25
    assert relative_error(torch.tensor([0.5, 0.0]), torch.zeros(2)) == 0.5
    assert math.isnan(relative_error(torch.zeros(3), wanted))
    assert math.isnan(relative_error(torch.tensor([math.nan, 0.0]), wanted))


def test_groups_keep_the_worst_array() -> None:
    checks = [Check("b", f"chunk{i}.step0.v", error, 1e-5) for i, error in enumerate([1e-6, math.nan, 2e-6])]
    (found,) = group(checks)
    assert (found.name, found.worst, found.ok) == ("chunkC.stepK.v", "chunk1.step0.v", False)
    assert group_name("latents_steps4_window2_sink") == "latents_steps4_window2_sink"


def test_report_names_what_failed() -> None:
    checks = [
        Check("a", "out", 1e-6, 2e-5),
        Check("a", "out_bf16model", 1e-2, 2e-5, informative=True),
        Check("b", "chunkC.stepK.v", 1e-3, 2e-5, worst="chunk1.step0.v"),
    ]
    console = Console(file=StringIO(), width=40)
    assert report(checks[:2], console)
    assert not report(checks, console)
    assert not report([], console)
    lines = console.file.getvalue().splitlines()
    assert lines[0].endswith("ok")
    assert lines[1].endswith("informative")
    assert "FAIL" in lines[5]
    assert "chunk1.step0.v" in lines[5]
    assert "3 array groups, 1 failed" in lines
