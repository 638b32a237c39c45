"""Muon for matrices, AdamW for the rest, a learning rate that follows the clock, and averaged weights."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients of the quintic iteration that drives singular values towards one."""

Points = list[dict[str, float]]
"""What a training noted, step by step."""


class Clock:
    """A time box: `progress` runs from 0 to 1 at its end, `rate` is the share of the full learning rate."""

    def __init__(self, minutes: float, warmup: float = 0.03, flat: float = 0.35) -> None:
        self.warmup, self.flat = warmup, flat
        self.start = time.monotonic()
        self.end = self.start + 60 * minutes

    def begin(self) -> None:
        """Let progress run from here on: to fill pools and to compile takes time, but no part of the schedule."""
        self.start = time.monotonic()

    @property
    def progress(self) -> float:
        now = time.monotonic()
        return 1.0 if now >= self.end else (now - self.start) / (self.end - self.start)

    @property
    def rate(self) -> float:
        now = self.progress
        if now < self.warmup:
            return (now + 1e-3) / self.warmup
        return min(1.0, (1 - now) / (1 - self.flat)) + 1e-3


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, rows, columns) with every matrix replaced by roughly the nearest with orthonormal rows or columns."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Momentum, orthogonalised; parameters of one shape are handled as one batch of matrices."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        self.rate = rate
        self.groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self.groups[parameter.flatten(1).shape].append(parameter)
        self.momentum = {s: torch.zeros(len(g), *s, device=g[0].device) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([parameter.grad.flatten(1) for parameter in group if parameter.grad is not None])
            momentum = self.momentum[shape].mul_(MOMENTUM).add_(gradient)
            update = orthogonalised(gradient + MOMENTUM * momentum)
            scale = self.rate * factor * max(1.0, shape[0] / shape[1]) ** 0.5
            changes = [change.view_as(parameter) for parameter, change in zip(group, update, strict=True)]
            torch._foreach_add_(group, changes, alpha=-scale)


class Optimizer:
    """Both optimizers over some modules; `matrix` decides by name and parameter which one takes it."""

    def __init__(self, modules: Iterable[nn.Module], muon: float, adam: float, excluded: tuple[str, ...]) -> None:
        named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
        matrices = [p for name, p in named if is_matrix(p) and not any(part in name for part in excluded)]
        chosen = {id(parameter) for parameter in matrices}
        self.parameters = [parameter for _, parameter in named]
        self.muon = Muon(matrices, muon)
        others = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        self.adam = torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.98), weight_decay=0.0, fused=others[0].is_cuda)
        self.adam_rate = adam

    def step(self, factor: float, limit: float = 1.0) -> Tensor:
        """Apply the gradients, clipped to a norm of `limit`, and clear them; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        self.muon.step(factor)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * factor
        self.adam.step()
        self.adam.zero_grad()
        for parameter in self.parameters:
            parameter.grad = None
        return norm


def is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and min(parameter.flatten(1).shape) >= 16


class Curve:
    """Counts steps and keeps what is measured at every `period`-th of them, which is when the GPU is waited for."""

    def __init__(self, clock: Clock, period: int) -> None:
        self.clock, self.period, self.step = clock, period, 0
        self.points: Points = []

    def add(self, **values: Tensor) -> None:
        self.step += 1
        if self.step % self.period == 0:
            numbers = {name: float(value.detach()) for name, value in values.items()}
            self.points.append({"step": self.step, "progress": round(self.clock.progress, 4), **numbers})
            print(self.points[-1], flush=True)


class Average:
    """Exponential moving average of the weights of some modules, over about the last 1 / (1 - decay) steps."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.live = [parameter for module in modules for parameter in module.parameters()]
        self.decay = decay
        self.kept = [parameter.detach().clone() for parameter in self.live]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        torch._foreach_lerp_(self.kept, self.live, 1 - min(self.decay, self.steps / (self.steps + 10)))

    @torch.no_grad()
    def store(self) -> None:
        """Put the averages in place of the live weights."""
        torch._foreach_copy_(self.live, self.kept)


class Training:
    """The steps of a time box: gradients are applied, weights averaged, and every `period`-th step is noted."""

    def __init__(
        self, modules: Sequence[nn.Module], optimizer: Optimizer, clock: Clock, period: int, decay: float = 0.998
    ) -> None:
        self.optimizer, self.clock = optimizer, clock
        self.average, self.curve = Average(modules, decay), Curve(clock, period)

    @property
    def step(self) -> int:
        """How many steps were made."""
        return self.curve.step

    def __iter__(self) -> Iterator[int]:
        """Steps made so far, until the time is over; it begins with the first."""
        self.clock.begin()
        while self.clock.progress < 1:
            yield self.step

    def apply(self, **measured: Tensor) -> None:
        """End a step, whose gradients are there."""
        norm = self.optimizer.step(self.clock.rate)
        self.average.update()
        self.curve.add(**measured, norm=norm)

    def finish(self) -> Points:
        """Put the averages in place of the live weights; the training curve."""
        self.average.store()
        return self.curve.points
