"""Engines from the files of a repository: a small description per variant, and weights that variants share."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from sana_gpu.text import load_text
from sana_runtime.engine import Engine
from sana_runtime.errors import EngineError, choose


@dataclass(frozen=True)
class Description:
    """What `VARIANT.json` beside the weights says: which part of the model, which variant, and how it was prepared."""

    part: str
    variant: str
    weights: str
    config: Mapping[str, Any]

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.variant}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> "Description":
        """Raises EngineError for a file that is none."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise EngineError(f"engine {path} cannot be read ({error}): build the repository again") from error


class GpuEngine(Engine, Protocol):
    """An engine of this package."""

    def warm(self) -> None:
        """Do once what the first chunks of a stream would otherwise wait for."""
        ...


Engines = Mapping[str, GpuEngine]
"""Engines of a part by variant."""


def _denoiser(weights: Path, config: Mapping[str, Any], device: str) -> Engines:
    from sana_gpu.denoiser import load_denoiser

    return load_denoiser(config, read_weights(weights, device), device)


def _vae(part: str, weights: Path, config: Mapping[str, Any], device: str) -> Engines:
    from sana_gpu.vae import load_vae

    return load_vae(part, config, read_weights(weights, device), device)


PARTS: dict[str, Callable[[Path, Mapping[str, Any], str], Engines]] = {
    "text_encoder": load_text,
    "vae_encoder": partial(_vae, "vae_encoder"),
    "denoiser": _denoiser,
    "vae_decoder": partial(_vae, "vae_decoder"),
}


def read_weights(path: Path, device: str) -> dict[str, Any]:
    """Prepared tensors by name, on the device."""
    from safetensors.torch import load_file

    return load_file(path, device)


def load(path: Path) -> Engine:
    """The engine that the description at `path` is of, warm; raises EngineError if there is no GPU or no such file."""
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            f"engine {path} needs an NVIDIA GPU and torch sees none: check the driver and the torch build"
        )
    engine = load_on(path, "cuda")
    engine.warm()
    return engine


def load_on(path: Path, device: str) -> GpuEngine:
    """As `load`, on any device of torch's; on a CPU it computes the same with the kernels' readable references."""
    description = Description.read(path)
    config = json.dumps(description.config, sort_keys=True)
    engines = _load_part(description.part, path.with_name(description.weights), config, device)
    return choose(f"variant of {description.part} in {path}", description.variant, engines)


@cache
def _load_part(part: str, weights: Path, config: str, device: str) -> Engines:
    """Variants of a part share its weights, so they are loaded together."""
    make = choose("part of the model", part, PARTS)
    return make(weights, json.loads(config), device)
