"""Forms of the gated delta network that candidates.py compares, at the sizes of the production model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import candidate_kernels
import candidate_recurrence
import gdn_gpu
import torch
from torch import Tensor

from sana_kernels import calls, naive_dit, naive_layer
from sana_kernels.calls import Call
from sana_kernels.kernels import KERNELS
from sana_kernels.launch import Launch, Phase, launch_for
from sana_kernels.launcher import allocate
from sana_kernels.operands import layer_problem
from sana_kernels.problem import NARROWEST, Problem

FRAMES = 3
LIMITS = gdn_gpu.LAYER_LIMITS | {"E4M3": 0.04}
DEVICE, SM = "cuda", 90


@dataclass(frozen=True)
class Form:
    """One way to compute `wanted`: `run` leaves it in `out`, in E4M3 divided by `step`, off by at most `limit`.

    `states` are those after the chunk, each with what is wanted of it. A phase of several is timed alone; `whole` is
    then all of them.
    """

    name: str
    run: Callable[[], object]
    whole: Callable[[], object]
    out: Tensor
    wanted: Tensor
    states: Sequence[tuple[Tensor, Tensor]]
    step: float
    limit: float

    def error(self) -> float:
        self.whole()
        out = gdn_gpu.off(self.out.float() * self.step, self.wanted)
        return max(out, *(gdn_gpu.off(*pair) for pair in self.states))


@dataclass(frozen=True)
class Recipe:
    """What a chain of calls differs in from what ships: nothing.

    `three`: a frame is summed in three programs of one product. Of prepared keys those rotated are always there, those
    that `lacks` names are not. `ahead`: the scan copies all that it loads ahead; `joined`: and leaves the sum of past
    and later; `late`: and norms the queries; `early`: a kernel begins before the one in front of it has ended.
    """

    three: bool = False
    lacks: tuple[str, ...] = ()
    ahead: bool = False
    joined: bool = False
    late: bool = False
    early: bool = False


LEAN = Recipe(True, ("weighted", "keys"), ahead=True)
RECIPES = {
    "shipped": Recipe(),
    "three": Recipe(True, ahead=True),
    "three, values weighted": Recipe(True, ("weighted",), ahead=True),
    "lean": LEAN,
    "three, joined": Recipe(True, ahead=True, joined=True),
    "lean, joined": replace(LEAN, joined=True),
    "lean, joined, late": replace(LEAN, joined=True, late=True),
    "lean, joined, late, early": replace(LEAN, joined=True, late=True, early=True),
}

LAUNCHES: dict[str, dict[str, Phase]] = {
    "bf16": {"summaries": Phase(8, 64, 3, 128), "scan": Phase(8, 4, 3, 128), "readout": Phase(8, 64, 1, 80)},
    "tf32": {"summaries": Phase(8, 32, 2, 128), "scan": Phase(8, 8, 2), "readout": Phase(8, 32)},
    "fp32": {"summaries": Phase(8, 32, 2), "scan": Phase(8, 8), "readout": Phase(8, 64)},
}
"""Of the candidates: with the fewest spills, two programs per multiprocessor where they fit, by ptxas of Triton 3.6."""

COUNT = 16
"""Rows of q that a program norms beside the scan."""


def launch_of(precision: str, recipe: Recipe) -> Launch:
    ours = dict(LAUNCHES[precision]) if recipe.three else {}
    if recipe.joined and precision == "bf16":
        ours["scan"] = Phase(8, 8, 3, 128)
    if not recipe.joined:
        ours.pop("readout", None)
    return replace(launch_for(SM, precision), **ours)


def chain(p: Problem, recipe: Recipe, launch: Launch) -> list[tuple[Any, Call]]:
    """The kernels of a recipe with their launches, in order."""
    listed = {call.kernel: (KERNELS[call.kernel], call) for call in calls.calls(p, launch)}
    p = listed["scan"][1].constants["p"]
    early = {"EARLY": recipe.early}

    def change(name: str, module: Any, grid: tuple[int, int, int], **constants: Any) -> None:
        listed[name] = getattr(module, name), replace(listed[name][1], grid=grid, constants=constants | early)

    if recipe.three:
        grid = p.all_tokens, 1 if recipe.late else 2, 1
        change("prepare", candidate_kernels, grid, epsilon=calls.NORM_EPSILON, p=p)
        size = {"TOKENS": launch.summaries.size, "STAGES": launch.summaries.stages}
        change("summaries", candidate_kernels, (p.all_frames, 4, 1), p=p, **size)
    if recipe.ahead:
        rows = max(NARROWEST, p.value_pad // launch.scan.size)
        shares = -(-p.all_tokens // (COUNT * p.streams)) if recipe.late else 0
        grid = p.streams, p.value_pad // rows + 1 + shares, 1 if recipe.joined else 2
        size = {"ROWS": rows, "STAGES": launch.scan.stages, "COUNT": COUNT, "JOINED": recipe.joined}
        change("scan", candidate_recurrence, grid, epsilon=calls.NORM_EPSILON, p=p, **size)
    if recipe.joined:
        grid = p.all_frames, -(-p.tokens // launch.readout.size), 1
        change("readout", candidate_recurrence, grid, epsilon=calls.EPSILON, p=p, TOKENS=launch.readout.size)
    return list(listed.values())


def bind(kernel: Any, call: Call, tensors: Mapping[str, Tensor]) -> Callable[[], object]:
    """A call as a function without arguments; tensors that it is not given are absent."""
    operands = {name: tensors.get(name) for name in kernel.arg_names if name not in call.constants}
    early = {"launch_pdl": True} if call.constants.get("EARLY") and call.kernel != "prepare" else {}
    return partial(kernel[call.grid], **operands, **call.constants, **call.options, **early)


def run_all(functions: list[Callable[[], object]]) -> None:
    for function in functions:
        function()


@dataclass(frozen=True)
class Case:
    """Operands of a precision, the result in float64, and where it goes."""

    precision: str
    tensors: dict[str, Tensor]
    wanted: Tensor
    states: Sequence[tuple[Tensor, Tensor]]
    out: Tensor
    step: float = 1.0

    @classmethod
    def draw(cls, precision: str) -> "Case":
        tensors = gdn_gpu.projections(1, FRAMES)
        wanted, after = naive_layer.gdn_layer_core(*gdn_gpu.wide(tensors, torch.float64), FRAMES)
        tensors |= {f"final_{name}": torch.empty_like(tensors[f"state_{name}"]) for name in ("kv", "z")}
        states = (tensors["final_kv"], after.kv), (tensors["final_z"], after.z)
        out = torch.empty_like(tensors["q"], memory_format=torch.contiguous_format)
        return cls(precision, tensors, wanted, states, out)

    def narrow(self) -> "Case":
        """The same with an output in E4M3."""
        step = float(self.wanted.abs().max()) / naive_dit.E4M3_MAX
        factor = {"factor": torch.tensor([1 / step], device=self.out.device)}
        return replace(self, tensors=self.tensors | factor, out=self.out.to(torch.float8_e4m3fn), step=step)

    @property
    def label(self) -> str:
        return self.precision if "factor" not in self.tensors else "E4M3"

    def forms(self, recipe: Recipe, **change: Any) -> tuple[Form, dict[str, Form]]:
        """The whole chain of a recipe, and every kernel of it by name."""
        p = layer_problem("layer", self.tensors, FRAMES, self.precision)
        tensors = self.tensors | allocate(p, self.out.device) | {"out": self.out}
        if recipe.three:
            tensors = {name: x for name, x in tensors.items() if name not in recipe.lacks}
            tensors["inverse_k"] = torch.empty(p.all_tokens, device=self.out.device)
        row = replace(launch_of(self.precision, recipe), **change)
        bound = {call.kernel: bind(kernel, call, tensors) for kernel, call in chain(p, recipe, row)}
        whole = partial(run_all, list(bound.values()))
        found = {"out": self.out, "wanted": self.wanted, "states": self.states, "step": self.step}
        form = partial(Form, whole=whole, limit=LIMITS[self.label], **found)
        return form("", whole), {name: form(name, run) for name, run in bound.items()}


def operators() -> Iterator[Form]:
    """The operator in every recipe, and its kernels; then the kernels with other launch parameters."""
    cases = {precision: Case.draw(precision) for precision in gdn_gpu.PRECISIONS}
    for case in (cases["bf16"], cases["bf16"].narrow(), cases["tf32"], cases["fp32"]):
        for name, recipe in RECIPES.items():
            whole, parts = case.forms(recipe)
            yield replace(whole, name=f"{case.label}, {name}")
            yield from (replace(part, name=f"{case.label}, {name}: {kernel}") for kernel, part in parts.items())
    for precision, name, kernel, change in PHASES:
        _, parts = cases[precision].forms(RECIPES[name], **change)
        settings = " ".join(str(value) for value in change.values())
        yield replace(parts[kernel], name=f"{precision}, {name}: {kernel} {settings}")


def rows(precision: str, recipe: str, kernel: str, *phases: tuple[int, ...]) -> Iterator[Any]:
    for phase in phases:
        yield precision, recipe, kernel, {kernel: Phase(*phase)}


PHASES: list[tuple[str, str, str, dict[str, Any]]] = [
    *rows("bf16", "three", "summaries", (8, 64, 2), (8, 64, 3), (8, 64, 4), (8, 128, 2), (4, 64, 3), (16, 64, 3)),
    *rows("bf16", "lean", "summaries", (8, 64, 2, 128), (8, 64, 4, 128), (8, 64, 3), (16, 64, 3)),
    *rows("bf16", "three", "scan", (8, 4, 2), (8, 8, 3), (4, 4, 3), (8, 4, 4)),
    *rows("bf16", "three, joined", "scan", (8, 4, 3, 128), (8, 4, 4), (8, 8, 4, 128), (4, 8, 3)),
    *rows("bf16", "three, joined", "readout", (8, 64), (4, 64), (4, 64, 1, 160), (4, 32), (8, 128)),
    *rows("tf32", "three", "summaries", (8, 64, 2), (8, 32, 3, 128), (16, 64, 2)),
    *rows("tf32", "three, joined", "readout", (8, 64, 1, 128), (8, 32, 1, 80), (4, 32)),
    *rows("tf32", "shipped", "summaries", (8, 64), (8, 64, 2), (16, 64)),
    *rows("tf32", "shipped", "readout", (8, 64), (8, 32)),
    *rows("fp32", "three", "summaries", (8, 32), (8, 16, 3), (16, 32)),
    *rows("fp32", "shipped", "summaries", (8, 16), (16, 32)),
    *rows("fp32", "shipped", "scan", (8, 8, 2), (16, 8)),
    *rows("fp32", "shipped", "readout", (8, 32), (16, 64)),
    *(("fp32", "shipped", "readout", {"programs": programs}) for programs in (132, 264, 1056)),
]
