"""The range of every quantisable layer's input: its largest magnitude, observed in a model, and kept as JSON.

The plain maximum is also all that modelopt's "max" calibration takes; so that package is not used here.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sana_quant.groups import Layer, layers
from sana_runtime.errors import ConfigError

HEADROOM = 4.0
"""How much wider than what was seen a range is taken. Other clips, other prompts and the quantised model itself go
beyond it, and what saturates is lost, while formats that float lose nothing by two bits of range: with tiny in FP8 it
takes the error of streams under a new prompt from 0.055 to 0.039, and from 0.100 to 0.039 after a calibration on
frames of a ninth of the area.
"""

AGAIN = "run `sana-build calibrate` for this model and checkpoint again"


@dataclass(frozen=True)
class Calibration:
    """Range of each layer's input by its module path, and `about`: from what model, weights and clips it was taken.

    The range `amax` is the magnitude that the scale of the input maps to the format's largest number.
    """

    amax: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)

    def of(self, path: str) -> float:
        """The range of the layer at `path`; raises ConfigError if it was not calibrated."""
        if path not in self.amax:
            raise ConfigError(f"the calibration has no entry for the layer {path}: {AGAIN}")
        return self.amax[path]

    def check(self, depth: int, where: str = "the calibration") -> None:
        """Raise ConfigError if a layer of a transformer of `depth` blocks is missing, or one is of another model."""
        expected = {layer.path for layer in layers(depth)}
        for path in sorted(expected - self.amax.keys()):
            raise ConfigError(f"{where} has no entry for the layer {path}: {AGAIN}")
        for path in sorted(self.amax.keys() - expected):
            raise ConfigError(f"{where} has the entry {path!r}, which is no quantised layer of this model: {AGAIN}")

    def dumps(self) -> str:
        """JSON with one line per layer."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Raises ConfigError if the file cannot be written."""
        try:
            path.write_text(self.dumps(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"calibration {path} cannot be written ({error.strerror}): name another file") from error

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Raises ConfigError naming the file and the entry that is wrong."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"calibration {path} cannot be read ({error.strerror}): name an existing file") from error
        except ValueError as error:
            raise ConfigError(f"calibration {path} is not JSON ({error}): {AGAIN}") from error
        return cls(*_parse(f"calibration {path}", content))


def _parse(where: str, content: Any) -> tuple[dict[str, float], dict[str, Any]]:
    amax, about = (content.get(key) if isinstance(content, dict) else None for key in ("amax", "about"))
    if not isinstance(amax, dict) or not isinstance(about, dict):
        raise ConfigError(f"{where} does not hold the tables `amax` and `about`: {AGAIN}")
    for path, value in amax.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ConfigError(f"{where} has {value!r} for the layer {path}, which is no magnitude: {AGAIN}")
    return {path: float(value) for path, value in amax.items()}, about


def layers_of(dit: nn.Module) -> list[Layer]:
    """Every layer of the groups in `dit`."""
    return layers(len(cast(nn.ModuleList, dit.get_submodule("blocks"))))


class Observer:
    """Running maxima of a model's layers, kept on its device."""

    def __init__(self) -> None:
        self._maxima: dict[str, Tensor] = {}

    def see(self, path: str, x: Tensor) -> None:
        largest = x.detach().abs().amax()
        seen = self._maxima.get(path)
        self._maxima[path] = largest if seen is None else torch.maximum(seen, largest)

    def calibration(self, about: Mapping[str, Any], headroom: float = HEADROOM) -> Calibration:
        """What was seen so far times `headroom`; raises ConfigError naming a layer whose input was not finite."""
        amax = {path: float(value) for path, value in self._maxima.items()}
        for path, value in amax.items():
            if not math.isfinite(value):
                raise ConfigError(
                    f"the input of layer {path} is not finite: check the checkpoint, or calibrate in fp32"
                )
        return Calibration({path: headroom * value for path, value in amax.items()}, {**about, "headroom": headroom})


@contextmanager
def observe(dit: nn.Module) -> Iterator[Observer]:
    """Watch the input of every layer of the groups in `dit`, of the prompt's keys and values as well."""
    observer = Observer()
    with ExitStack() as stack:
        for layer in layers_of(dit):
            hook = dit.get_submodule(layer.path).register_forward_pre_hook(_watch(observer, layer.path))
            stack.callback(hook.remove)
        yield observer


def _watch(observer: Observer, path: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
        observer.see(path, inputs[0])

    return hook
