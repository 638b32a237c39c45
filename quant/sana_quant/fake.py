"""A transformer that computes as its engine will: Linears whose weights and inputs are rounded to FP8 or NVFP4."""

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from sana_quant.calibration import Calibration, layers_of
from sana_quant.numerics import BLOCK, fake_fp8, fake_nvfp4, fp8_scale, nvfp4_scale, quantise_weight
from sana_quant.policy import OUTSIDE, Policy
from sana_runtime.errors import ConfigError

M = TypeVar("M", bound=nn.Module)

INPUTS = {"fp8": (fp8_scale, fake_fp8), "nvfp4": (nvfp4_scale, fake_nvfp4)}
"""Scale of a largest magnitude, and rounding under it."""


class FakeQuantLinear(nn.Module):
    """A Linear in a precision that can be changed; the weights of every precision it has had are kept.

    FP8 has one scale for the input and one for the weight. NVFP4 scales blocks of 16, those of the input call by call.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.precision = OUTSIDE[0]
        self.amax = 0.0
        self._fakes: dict[str, Tensor] = {}

    def use(self, precision: str, amax: float) -> None:
        """Compute in `precision` from now on; `amax` is the largest magnitude of the inputs it is calibrated for."""
        if precision not in OUTSIDE and precision not in self._fakes:
            self._fakes[precision] = quantise_weight(self.weight.detach(), precision)[0]
        self.precision, self.amax = precision, amax

    def forward(self, x: Tensor) -> Tensor:
        if self.precision in OUTSIDE:
            return F.linear(x, self.weight, self.bias)
        scale, fake = INPUTS[self.precision]
        return F.linear(fake(x, scale(self.amax)), self._fakes[self.precision], self.bias)


def fake_quantised(dit: M, policy: Policy, calibration: Calibration) -> M:
    """A copy of `dit` under `policy` that shares its parameters; layers in bf16 or fp32 compute as they did.

    Raises ConfigError naming a layer that was not calibrated or whose width NVFP4 cannot split.
    """
    copy = _sharing(dit)
    for layer in layers_of(dit):
        parent, _, name = layer.path.rpartition(".")
        linear = cast(nn.Linear, dit.get_submodule(layer.path))
        setattr(copy.get_submodule(parent), name, FakeQuantLinear(linear))
    set_policy(copy, policy, calibration)
    return copy


def set_policy(quantised: nn.Module, policy: Policy, calibration: Calibration) -> None:
    """Change what fake_quantised returned to another policy, which costs nothing for precisions a layer had before.

    Raises ConfigError naming a layer that was not calibrated or whose width NVFP4 cannot split.
    """
    for layer in layers_of(quantised):
        module = cast(FakeQuantLinear, quantised.get_submodule(layer.path))
        precision = policy.precision(layer.group, layer.block)
        width = module.weight.shape[1]
        if precision == "nvfp4" and width % BLOCK:
            raise ConfigError(
                f"policy {policy.name} has {layer.path} in nvfp4, whose {width} input channels are no multiple of "
                f"{BLOCK}: give {layer.group} another precision"
            )
        module.use(precision, 0.0 if precision in OUTSIDE else calibration.of(layer.path))


def _sharing(module: M) -> M:
    tensors: Mapping[int, Tensor] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return deepcopy(module, dict(tensors))
