"""Forms of the transformer's kernels that candidates.py compares, at the sizes of the production model."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import candidate_kernels
import gdn_gpu
import torch
from torch import Tensor

from sana_kernels import cross, depthwise, naive_dit, naive_layer, rows
from sana_kernels.dit_shapes import CrossShape, ImageShape, RowShape
from sana_kernels.launch import Phase
from sana_kernels.problem import padded

FRAMES, HEIGHT, WIDTH, HEADS, HEAD, FFN, KEYS, WINDOW = 3, 22, 40, 20, 112, 6720, 300, 9680
FRAME, HIDDEN = HEIGHT * WIDTH, HEADS * HEAD
TOKENS = FRAMES * FRAME
STEP = 0.02
ROUNDED, NARROWED = 6e-3, 0.04
"""How far a result may be off that is rounded to bfloat16 at the end and between steps, or to E4M3."""

DEVICE, FAST = "cuda", True
USED = (200, 300)
"""Keys of a prompt of 200 tokens, and of the longest; FAST is what GPUs do."""


@dataclass(frozen=True)
class Form:
    """One way to compute `wanted`: `run` leaves it in `out`, in E4M3 divided by `step`.

    A phase of several is timed alone; `whole` is then all of them.
    """

    name: str
    run: Callable[[], object]
    out: Tensor
    wanted: Tensor
    whole: Callable[[], object] | None = None
    step: float = STEP

    def error(self) -> float:
        (self.whole or self.run)()
        return gdn_gpu.off(self.out.float() * (self.step if self.narrow else 1), self.wanted)

    @property
    def narrow(self) -> bool:
        return self.out.dtype == torch.float8_e4m3fn


def draw(*sizes: int) -> Tensor:
    return torch.randn(*sizes, device=DEVICE).bfloat16()


def former_kernel(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"former_kernels.{module}"), name)


def launcher(kernel: Any, grid: tuple[int, ...], warps: int, stages: int = 1, **arguments: Any) -> Callable[[], object]:
    """A launch; tensors that it is not given are absent."""
    known = dict.fromkeys(kernel.arg_names) | arguments
    return partial(kernel[grid], **known, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


def target(narrow: bool, *shape: int) -> tuple[Tensor, dict[str, Any]]:
    """An output, and what a kernel is told of it."""
    out = torch.empty(*shape, device=DEVICE, dtype=torch.float8_e4m3fn if narrow else torch.bfloat16)
    return out, {"fp8" if narrow else "plain": out, "factor": 1 / STEP}


def kind(narrow: bool) -> str:
    return "E4M3" if narrow else "BF16"


def crossing(former: ModuleType | None) -> Iterator[Form]:
    """Cross-attention, without the norm of its queries."""
    q, k, v = draw(1, TOKENS, HIDDEN), draw(1, HEADS, KEYS, HEAD), draw(1, HEADS, KEYS, HEAD)
    inverse = torch.rsqrt(q.float().square().mean(-1) + naive_dit.CROSS_EPSILON)
    shape = CrossShape(HEADS, HEAD, TOKENS, KEYS)
    for used, narrow in ((used, narrow) for used in USED for narrow in (False, True)):
        bias = torch.zeros(1, KEYS, device=DEVICE)
        bias[:, used:] = -10000.0
        out, told = target(narrow, 1, TOKENS, HIDDEN)
        given = {"q": q, "k": k, "v": v, "bias": bias, "inverse": inverse, "p": shape, **told}
        counted = given | {"used": torch.tensor([used], dtype=torch.int32, device=DEVICE)}
        form = partial(Form, out=out, wanted=naive_dit.cross_attention(q, k, v, bias))
        label = f"{kind(narrow)}, {used} keys"
        if former is not None:
            run = launcher(former_kernel("cross", "cross_attention"), (-(-TOKENS // 64), HEADS, 1), 4, **given,
                           QUERIES=64, KEYS=64)  # fmt: skip
            yield form(f"former q64 k64, {label}", run)
        for queries, keys, warps, stages, most in CROSS:
            limit = {"maxnreg": most} if most else {}
            run = launcher(cross.cross_attention, (-(-TOKENS // queries), HEADS, 1), warps, stages, **counted, **limit,
                           QUERIES=queries, KEYS=keys)  # fmt: skip
            yield form(f"q{queries} k{keys} w{warps} s{stages} r{most}, {label}", run)
        for queries, groups, warps in CHIP:
            run = launcher(candidate_kernels.cross_on_chip, (groups, HEADS, 1), warps, **given, QUERIES=queries,
                           KEYS=64, GROUPS=groups)  # fmt: skip
            yield form(f"on chip q{queries} g{groups} w{warps}, {label}", run)


CROSS = ((64, 64, 4, 1, 0), (64, 32, 4, 1, 0), (64, 32, 4, 2, 128), (128, 64, 8, 1, 0), (128, 64, 8, 2, 128),
         (128, 32, 8, 2, 128))  # fmt: skip
CHIP = ((64, 6, 4), (128, 6, 8))


def rows_of(former: ModuleType | None) -> Iterator[Form]:
    """The three residuals of a block, with the norm behind two of them."""
    x, y, more, tail = (draw(1, count, HIDDEN) for count in (TOKENS, TOKENS, TOKENS, FRAME))
    taps = draw(1, TOKENS, 3 * HIDDEN)
    gate, shift, scale = (torch.randn(HIDDEN, device=DEVICE).half() for _ in range(3))
    vectors = {"gate": gate, "shift": shift, "scale": scale}
    p = RowShape(TOKENS, HIDDEN, FRAMES, FRAME, HIDDEN)
    uses: dict[str, dict[str, Any]] = {
        "gate": {"x": x, "y": y, "gate": gate},
        "norm": {"x": x, "y": y, "shift": shift, "scale": scale},
        "temporal": {"x": x, "y": y, "more": more, "tail": tail, **vectors},
    }
    for (use, given), narrow in ((pair, narrow) for pair in uses.items() for narrow in (False, True)):
        mixed = naive_dit.mix(y, given.get("more"), given.get("tail"), FRAMES)
        wanted = naive_dit.residual(x, mixed, given.get("gate"))
        wanted = naive_dit.modulated_norm(wanted, shift, scale) if use != "gate" else wanted
        out, told = target(narrow, 1, TOKENS, HIDDEN)
        constants = {"x_out": torch.empty_like(x), "epsilon": naive_dit.LAYER_NORM_EPSILON, **told}
        for warps, count in ((4, 1), (8, 1), (2, 1), (4, 2)):
            run = launcher(rows.residual_norm, (-(-TOKENS // count),), warps, **given, **constants, p=p, ROWS=count)
            yield Form(f"{use}, {kind(narrow)}, w{warps} x{count}", run, out, wanted)
        if former is not None:
            yield former_row(use, narrow, {**given, **constants}, taps, out, wanted)


def former_row(use: str, narrow: bool, given: dict[str, Any], taps: Tensor, out: Tensor, wanted: Tensor) -> Form:
    """Products of the temporal layer in FP8 were not added up before: three shares."""
    shares = (3 if narrow else 1) if use == "temporal" else 0
    before = {name: value for name, value in given.items() if name != "more"}
    if shares:
        before["taps"] = taps if narrow else given["more"]
    if shares == 3:
        parts = taps.float().unflatten(1, (FRAMES, -1)).chunk(3, dim=-1)
        added = parts[1].clone()
        added[:, 1:] += parts[0][:, :-1]
        added[:, :-1] += parts[2][:, 1:]
        mixed = naive_dit.mix(given["y"], added.flatten(1, 2), given["tail"], FRAMES)
        wanted = naive_dit.residual(given["x"], mixed, given["gate"])
        wanted = naive_dit.modulated_norm(wanted, given["shift"], given["scale"])
    shape = former_kernel("dit_shapes", "RowShape")(TOKENS, HIDDEN, FRAMES, FRAME, HIDDEN, shares)
    run = launcher(former_kernel("rows", "residual_norm"), (TOKENS,), 4, **before, p=shape, ROWS=1)
    return Form(f"former {use}, {kind(narrow)}", run, out, wanted)


def narrowing(former: ModuleType | None) -> Iterator[Form]:
    """What writes E4M3 alone, and the join of attention."""
    x, tail = draw(1, TOKENS, HIDDEN), draw(1, FRAME, HIDDEN)
    p = RowShape(TOKENS, HIDDEN, FRAMES, FRAME, HIDDEN)
    stack = torch.empty(1, TOKENS, 3 * HIDDEN, device=DEVICE, dtype=torch.float8_e4m3fn)
    for warps in (2, 4, 8):
        run = launcher(rows.stack_frames, (TOKENS,), warps, x=x, tail=tail, out=stack, factor=1 / STEP, p=p)
        yield Form(f"stacked frames w{warps}", run, stack, naive_dit.stacked(x, tail, FRAMES))
    parts, lse = draw(4, TOKENS, HIDDEN), torch.randn(4, HEADS, TOKENS, device=DEVICE)
    gate = draw(1, TOKENS, 4 * HIDDEN)[..., 3 * HIDDEN :]
    joined = naive_dit.gated(naive_dit.joined(parts, lse), gate)
    modules = [("", rows)] + ([("former ", importlib.import_module("former_kernels.rows"))] if former else [])
    for (label, module), narrow, warps in ((m, n, w) for m in modules for n in (False, True) for w in (4, 8)):
        out, told = target(narrow, 1, TOKENS, HIDDEN)
        one = RowShape(TOKENS, HIDDEN, 1, TOKENS, HEAD)
        run = launcher(module.gate_rows, (TOKENS,), warps, x=parts, lse=lse, gate=gate, **told, p=one, ROW=4 * HIDDEN,
                       PARTS=4, HEADS=padded(HEADS), HEAD=padded(HEAD))  # fmt: skip
        yield Form(f"{label}join, {kind(narrow)}, w{warps}", run, out, joined)
        run = launcher(module.gate_rows, (TOKENS,), warps, x=x, **told, p=p, ROW=0, PARTS=1, HEADS=16, HEAD=16)
        yield Form(f"{label}copy, {kind(narrow)}, w{warps}", run, out, x.float())


def stencils(former: ModuleType | None) -> Iterator[Form]:
    """SiLU, depthwise 3x3, gate."""
    wide, weight, bias = draw(1, TOKENS, 2 * FFN), draw(9, 2 * FFN), draw(2 * FFN)
    given = {"wide": wide, "weight": weight, "bias": bias, "p": ImageShape(HEIGHT, WIDTH, FFN), "FAST": FAST}
    wanted = naive_dit.depthwise_glu(wide, weight, bias, HEIGHT, WIDTH)
    for narrow in (False, True):
        out, told = target(narrow, 1, TOKENS, FFN)
        if former is not None:
            kernel = former_kernel("depthwise", "depthwise_glu")
            grid = FRAMES * -(-HEIGHT // 2), -(-FFN // 256)
            run = launcher(kernel, grid, 1, **given, **told, CHANNELS=256, STAGES=3)
            yield Form(f"former, {kind(narrow)}", run, out, wanted)
        for down, across, channels, stages in DEPTHWISE:
            tiles = FRAMES * -(-HEIGHT // down) * -(-WIDTH // across)
            size = {"ROWS": down, "COLUMNS": across, "CHANNELS": channels, "STAGES": stages}
            run = launcher(depthwise.depthwise_glu, (tiles, -(-FFN // channels)), 1, **given, **told, **size)
            yield Form(f"{down}x{across} c{channels} s{stages}, {kind(narrow)}", run, out, wanted)


DEPTHWISE = ((2, 40, 256, 3), (4, 40, 128, 3), (6, 20, 128, 3), (8, 20, 64, 3), (11, 20, 64, 3), (11, 40, 64, 3))


class Chain:
    """The calls of the GDN operator as a package has them, on one set of tensors."""

    def __init__(self, package: str, tensors: Mapping[str, Tensor], out: Tensor, step: float) -> None:
        self._calls, self._launch, self._launcher, operands = (
            importlib.import_module(f"{package}.{name}") for name in ("calls", "launch", "launcher", "operands")
        )
        given = dict(tensors)
        if out.dtype == torch.float8_e4m3fn:
            given["factor"] = torch.tensor([1 / step], device=DEVICE)
        self._problem = operands.layer_problem("layer", given, FRAMES, "bf16")
        finals = {f"final_{name}": torch.empty_like(tensors[f"state_{name}"]) for name in ("kv", "z")}
        self._tensors = {**given, **finals, "out": out, **self._launcher.allocate(self._problem, out.device)}

    def bound(self, **change: Any) -> dict[str, Callable[[], object]]:
        """Every call by its kernel's name, with some launch parameters changed."""
        row = replace(self._launch.launch_for(90, "bf16"), **change)
        return {call.kernel: self._launcher.bind(call, self._tensors) for call in self._calls.calls(self._problem, row)}


def operators(former: ModuleType | None) -> Iterator[Form]:
    """The GDN operator and its phases, each with several launch parameters."""
    tensors = gdn_gpu.projections(1, FRAMES)
    exact, _ = naive_layer.gdn_layer_core(*gdn_gpu.wide(tensors, torch.float64), FRAMES)
    step = float(exact.abs().max()) / naive_dit.E4M3_MAX
    packages = ["sana_kernels"] + (["former_kernels"] if former else [])
    for narrow, package in ((narrow, package) for narrow in (False, True) for package in packages):
        out, _ = target(narrow, 1, TOKENS, HIDDEN)
        chain = Chain(package, tensors, out, step)
        form = partial(Form, out=out, wanted=exact, step=step)
        bound = chain.bound()
        whole = partial(run_all, list(bound.values()))
        yield form(f"{package}, {kind(narrow)}", whole)
        for name, run in bound.items():
            yield form(f"{package} {name}, {kind(narrow)}", run, whole=whole)
        for kernel, change in PHASES if package == "sana_kernels" else ():
            bound = chain.bound(**change)
            settings = " ".join(str(value) for value in change.values())
            whole = partial(run_all, list(bound.values()))
            yield form(f"{kernel} {settings}, {kind(narrow)}", bound[kernel], whole=whole)


def run_all(functions: list[Callable[[], object]]) -> None:
    for function in functions:
        function()


PHASES: list[tuple[str, dict[str, Any]]] = [
    *(
        ("summaries", {"summaries": Phase(*row)})
        for row in ((8, 64, 2), (8, 64, 3), (8, 32, 4), (16, 64, 3), (4, 64, 3))
    ),
    *(("scan", {"scan": Phase(*row)}) for row in ((4, 4, 2), (4, 8, 2), (4, 4, 1), (8, 2, 2), (8, 4, 2))),
    *(
        ("readout", {"readout": Phase(*row), "programs": programs})
        for row in ((8, 64), (8, 64, 2), (8, 64, 1, 80), (4, 64), (8, 128))
        for programs in (4 * 132, 8 * 132)
    ),
]

PARTS: dict[str, Callable[[ModuleType | None], Iterator[Form]]] = {
    "cross-attention": crossing,
    "residuals": rows_of,
    "narrowing": narrowing,
    "depthwise": stencils,
    "GDN": operators,
}
