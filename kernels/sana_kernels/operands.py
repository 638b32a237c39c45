"""From the tensors of a call to its Problem, or to a KernelError that names the tensor in the way."""

from collections.abc import Mapping

from torch import Tensor

from sana_kernels.checks import check_contiguous, check_precision, check_shapes, check_types, check_width, row_stride
from sana_kernels.errors import KernelError
from sana_kernels.problem import Problem, Rows

TOKENS = {"q": "bhtsk", "k": "bhtsk", "v": "bhtsv", "q_rot": "bhtsk", "k_rot": "bhtsk", "beta": "bhts"}
PROJECTIONS = {"q": "bnc", "k": "bnc", "v": "bnc", "gate": "bnc", "beta": "bnh", "rate": "bnh"}
WEIGHTS = {"q_weight": "c", "k_weight": "c", "rate_bias": "h", "a_log": "h"}
STATES = {"state_kv": "bhvk", "state_z": "bhk"}


def gdn_problem(op: str, tensors: Mapping[str, Tensor], precision: str) -> Problem:
    """Of prepared operands (B, h, T, S, d)."""
    states = _carried(op, tensors)
    check_precision(op, precision)
    size = check_shapes(op, tensors, {**TOKENS, "decay": "bht", **states})
    check_types(op, tensors, TOKENS, ["decay", *states])
    check_contiguous(op, tensors, tensors)
    for name in ("k", "v"):
        check_width(op, name, size[name])
    rows = Rows(q=size["k"], k=size["k"], v=size["v"], beta=1)
    return Problem(size["b"], size["h"], size["t"], size["s"], size["k"], size["v"], precision, bool(states), rows)


def layer_problem(op: str, tensors: Mapping[str, Tensor], frames: int, precision: str) -> Problem:
    """Of raw projections (B, N, C) of `frames` frames."""
    check_precision(op, precision)
    size = check_shapes(op, tensors, {**PROJECTIONS, **WEIGHTS})
    width, tokens = size["c"] // size["h"], size["n"] // frames
    if width * size["h"] != size["c"] or width % 2:
        raise KernelError(f"{op}: {size['c']} channels do not make {size['h']} heads of an even width")
    if tokens * frames != size["n"]:
        raise KernelError(f"{op}: q has {size['n']} tokens, which are not {frames} equal frames")
    check_width(op, "k", width)
    size |= {"k": width, "v": width}
    states = _carried(op, tensors)
    own_angles = tensors["rope"].ndim == 3
    check_shapes(op, tensors, {**states, "rope": "bnk" if own_angles else "nk"}, size)
    check_types(op, tensors, PROJECTIONS, [*states, *({"factor"} & tensors.keys())])
    check_contiguous(op, tensors, [*WEIGHTS, "rope", *states])
    rows = Rows(**{name: row_stride(op, name, tensors[name]) for name in PROJECTIONS})
    return Problem(size["b"], size["h"], frames, tokens, width, width, precision, bool(states), rows, True, own_angles)


def _carried(op: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Layouts of the carried state if there is one, which is two tensors or none."""
    given = {name: layout for name, layout in STATES.items() if name in tensors}
    if len(given) == 1:
        raise KernelError(f"{op}: state_kv and state_z go together, got {', '.join(given)} alone")
    return given
