"""Products with prepared weights, in their own type or in FP8 with one static scale per tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_kernels.dit_launcher import Both


@dataclass(frozen=True)
class Linear:
    """x @ weight.T + bias in `dtype`. In FP8 `scale` () is the weight's, `input_scale` () and `step` its input's.

    `factor` (1,) is 1 / step, for kernels that read it on the GPU.
    """

    weight: Tensor
    dtype: torch.dtype
    bias: Tensor | None = None
    scale: Tensor | None = None
    input_scale: Tensor | None = None
    step: float | None = None
    factor: Tensor | None = None

    @classmethod
    def load(cls, weights: Mapping[str, Tensor], path: str) -> "Linear":
        """The product at `path` of weights that prepare_dit made."""
        step = weights.get(f"{path}.step")
        return cls(
            weights[f"{path}.weight"],
            weights["x_embedder.weight"].dtype,
            weights.get(f"{path}.bias"),
            weights.get(f"{path}.scale"),
            step,
            None if step is None else float(step),
            None if step is None else step.reciprocal().reshape(1),
        )

    @property
    def plain(self) -> bool:
        """Whether it reads its input in the type of the activations."""
        return self.step is None

    def __call__(self, x: Both) -> Tensor:
        """(B, N, K) in the form that the weight needs, to (B, N, M) in the activations' type."""
        plain, fp8 = x
        return F.linear(plain, self.weight, self.bias) if self.plain else self._scaled(fp8)

    def _scaled(self, x: Tensor) -> Tensor:
        assert self.scale is not None
        assert self.input_scale is not None
        if not x.is_cuda:
            wide = F.linear(x.float(), self.weight.float()) * (self.scale * self.input_scale)
            return (wide if self.bias is None else wide + self.bias).to(self.dtype)
        result = torch._scaled_mm(
            x.flatten(0, 1), self.weight.T, self.input_scale, self.scale, self.bias,
            out_dtype=self.dtype, use_fast_accum=True,
        )  # fmt: skip
        return result.unflatten(0, x.shape[:2])
