"""Section h of the golden data passes, covers every recorded array, and notices a change in the VAE."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sana_export.golden import Check
from sana_export.golden_vae import INPUTS, section_h
from sana_runtime.errors import BuildError, CheckpointError

# Tensors this small are slower, by far, when busy cores have to wait for one another.
torch.set_num_threads(1)

ARRAYS, WEIGHTS = "h_vae.npz", "h_vae_weights_bidirectional.npz"


@pytest.fixture(scope="module")
def config(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "config.json").read_text())


def failures(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.error <= check.limit}


def test_every_recorded_array_is_reproduced(golden: Path, config: dict[str, Any]) -> None:
    checks = list(section_h(golden, config))
    assert not failures(checks)
    with np.load(golden / "h_vae.npz") as arrays:
        assert {check.name for check in checks} == set(arrays.files) - INPUTS


def copy_with(golden: Path, target: Path, file: str, **changes: Any) -> Path:
    """Both VAE files of the golden data in `target`, with these arrays replaced, added, or left out (None)."""
    for each in (ARRAYS, WEIGHTS):
        with np.load(golden / each) as arrays:
            content = {key: arrays[key] for key in arrays.files} | (changes if each == file else {})
        np.savez(target / each, **{key: value for key, value in content.items() if value is not None})
    return target


def recorded(golden: Path, file: str, name: str) -> np.ndarray:
    with np.load(golden / file) as arrays:
        return arrays[name]


def test_one_changed_weight_is_noticed(golden: Path, config: dict[str, Any], tmp_path: Path) -> None:
    key = "decoder.mid_block.resnets.0.conv1.conv.weight"
    changed = copy_with(golden, tmp_path, WEIGHTS, **{key: recorded(golden, WEIGHTS, key) * 1.01})
    failed = failures(list(section_h(changed, config)))
    assert {"decode_causal_whole", "decode_chunk_tile_sub2", "stream_cache_mean.2"} <= failed
    assert "latent_encode_full" not in failed


def test_changed_and_added_records_are_noticed(golden: Path, config: dict[str, Any], tmp_path: Path) -> None:
    names = ("stream_frames", "stream_cache_kinds", "stream_cache_shapes", "stream_cache_mean.5")
    changes = {name: recorded(golden, ARRAYS, name)[::-1] for name in names}
    changed = copy_with(golden, tmp_path, ARRAYS, **changes, extra=np.zeros(3))
    assert failures(list(section_h(changed, config))) == {*names, "extra (not covered)"}


def test_a_missing_record_and_a_cut_file_are_refused(golden: Path, config: dict[str, Any], tmp_path: Path) -> None:
    changed = copy_with(golden, tmp_path, ARRAYS, stream_frames=None)
    with pytest.raises(BuildError, match="no array stream_frames"):
        list(section_h(changed, config))
    os.truncate(tmp_path / ARRAYS, 5000)
    with pytest.raises(BuildError, match=r"h_vae.npz cannot be read"):
        list(section_h(tmp_path, config))


def test_weights_of_another_shape_are_refused(golden: Path, config: dict[str, Any], tmp_path: Path) -> None:
    copy_with(golden, tmp_path, WEIGHTS, latents_mean=np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match=r"latents_mean has shape \[3\] instead of \[8\]"):
        list(section_h(tmp_path, config))
