"""Golden data: recorded arrays of the original implementation, and how far ours are from them."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from sana_export.compare import relative_error
from sana_export.configs import DiTConfig
from sana_export.dit import DiT
from sana_export.dit_keys import OPTIONAL, from_released, released_shapes
from sana_export.tensor_files import check_tensors
from sana_runtime.errors import BuildError

INFORMATIVE = "bf16model"
INDEX_LETTERS = {"chunk": "C", "step": "K", "block": "N", "call": "I", "intermediate": "I"}

WEIGHTS = {True: "dit_streaming_weights.npz", False: "dit_bidirectional_weights.npz"}


@dataclass(frozen=True)
class Check:
    """One comparison: error = max|a-b| / max|b|, or NaN where nothing could be compared.

    `worst` names the array with the error where `name` is a group of them.
    """

    section: str
    name: str
    error: float
    limit: float
    informative: bool = False
    worst: str = ""

    @property
    def ok(self) -> bool:
        return self.informative or self.error <= self.limit


def group(checks: Iterable[Check]) -> list[Check]:
    """One check per pattern of names (`chunkC.stepK.v`), with the largest error of its arrays."""
    worst: dict[str, Check] = {}
    for check in checks:
        name = group_name(check.name)
        error = math.inf if math.isnan(check.error) else check.error
        if name not in worst or error > worst[name].error:
            worst[name] = Check(check.section, name, error, check.limit, check.informative, check.name)
    return list(worst.values())


def group_name(name: str) -> str:
    """The name with a letter in place of every index."""
    name = re.sub(r"(chunk|step|block|call|intermediate)\d+", lambda match: match[1] + INDEX_LETTERS[match[1]], name)
    return re.sub(r"\.\d+$", ".I", name)


class GoldenArrays:
    """The arrays of one .npz file as tensors; it notes which of them were used. Raises BuildError for missing ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path) as archive:
                self._arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        except (OSError, ValueError, TypeError, BadZipFile) as error:
            raise BuildError(f"golden file {path} cannot be read ({error}): fetch the golden data again") from error
        self._unused = dict.fromkeys(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._arrays:
            raise BuildError(f"golden file {self.path} has no array {name}: fetch the golden data again")
        self._unused.pop(name, None)
        return self._arrays[name]

    def all(self) -> dict[str, Tensor]:
        self._unused.clear()
        return self._arrays

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """Names that match as a whole; looking does not use an array."""
        return [match for name in self._arrays if (match := re.fullmatch(pattern, name))]

    def check(self, name: str, found: Tensor, limit: float) -> Check:
        """Compare with the array `name`; integers must be equal."""
        wanted = self[name]
        limit = limit if wanted.is_floating_point() else 0.0
        return Check(self.path.name[0], name, relative_error(found, wanted), limit, name.endswith(INFORMATIVE))

    def uncovered(self) -> Iterator[Check]:
        """A failing check for every array that nothing has used."""
        for name in self._unused:
            yield Check(self.path.name[0], f"{name} (not covered)", math.nan, 0.0)


class Fields(dict[str, Any]):
    """A JSON object whose missing fields are reported in a sentence."""

    def __missing__(self, name: str) -> Any:
        raise BuildError(f"the config.json of the golden data has no field {name}: fetch the golden data again")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a golden folder; raises BuildError if there is none, or it lacks a field that is asked for."""
    path = directory / "config.json"
    try:
        return json.loads(path.read_text(), object_hook=Fields)
    except OSError as error:
        raise BuildError(f"{path} cannot be read ({error.strerror}): name a folder of golden data") from error
    except ValueError as error:
        raise BuildError(f"{path} is not JSON ({error}): fetch the golden data again") from error


def dit_config(config: dict[str, Any], streaming: bool) -> DiTConfig:
    """The transformer that a golden config describes; raises BuildError where ours has no such choice."""
    dit = config["dit"]
    ours = DiTConfig(
        depth=dit["depth"],
        hidden=dit["hidden_size"],
        heads=dit["num_heads"],
        latent_channels=dit["in_channels"],
        source_channels=dit["additional_inchannels"],
        mlp_ratio=dit["mlp_ratio"],
        caption_width=dit["caption_channels"],
        text_tokens=dit["model_max_length"],
        softmax_ratio=dit["softmax_ratio"],
        streaming=streaming,
        max_frames=dit["rope_max_len"],
    )
    fixed = FIXED | {"head_dim": ours.head_dim, "softmax_layer_indices": list(ours.softmax_blocks)}
    strange = [f"{name} = {dit[name]}, ours is {value}" for name, value in fixed.items() if dit[name] != value]
    if strange:
        raise BuildError(f"the golden data comes from another kind of transformer: {'; '.join(strange)}")
    return ours


FIXED = {
    "qk_norm": True,
    "cross_norm": True,
    "y_norm": True,
    "t_kernel_size": 3,
    "gdn_eps": 1e-8,
    "attn_qk_norm_eps": 1e-5,
    "cross_qk_norm_eps": 1e-6,
    "y_norm_eps": 1e-5,
    "layernorm_eps": 1e-6,
    "rope_theta": 10000.0,
    "patch_size": [1, 1, 1],
}
"""What a golden config states and our transformer cannot vary."""


def load_dit(directory: Path, config: dict[str, Any], streaming: bool) -> DiT:
    """The golden streaming or bidirectional transformer; raises CheckpointError if its tensors do not fit."""
    ours, path = dit_config(config, streaming), directory / WEIGHTS[streaming]
    tensors = {name: tensor for name, tensor in GoldenArrays(path).all().items() if name not in OPTIONAL}
    expected = {name: shape for name, shape in released_shapes(ours).items() if name not in OPTIONAL}
    check_tensors(str(path), expected, tensors)
    dit = DiT(ours).eval().requires_grad_(False)
    dit.load_state_dict(from_released(ours, tensors))
    return dit
