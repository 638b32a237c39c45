"""The PyTorch operators: what exporters see of them, and what the kernels refuse by name."""

from collections.abc import Callable

import pytest
import torch
from gdn_cases import carried, off, operands, projections
from torch import Tensor

from sana_kernels import launch, naive, naive_layer
from sana_kernels.errors import KernelError
from sana_kernels.launcher import architecture
from sana_kernels.naive_dit import to_fp8
from sana_kernels.ops import gdn, gdn_layer_core, run_gdn, run_gdn_layer_core

SHAPE = (1, 2, 2, 5, 16, 16)
NAMES = ("q", "k", "v", "q_rot", "k_rot", "beta", "decay")

Named = dict[str, Tensor]


def prepared() -> Named:
    state = carried(SHAPE)
    tensors = dict(zip(NAMES, operands(SHAPE), strict=True)) | {"state_kv": state.kv, "state_z": state.z}
    return {name: tensor.float() for name, tensor in tensors.items()}


def raw() -> Named:
    state = carried((1, 2, 2, 5, 16, 16))
    tensors = projections(1, 2, 2, 5, 16) | {"state_kv": state.kv, "state_z": state.z}
    return {name: tensor.float() for name, tensor in tensors.items()}


def test_a_cpu_gets_the_reference() -> None:
    tensors = prepared()
    out, kv, z = gdn(**tensors)
    wanted, after = naive.gdn(*(tensors[name] for name in NAMES), naive.State(tensors["state_kv"], tensors["state_z"]))
    for got, exact in zip((out, kv, z), (wanted, *after), strict=True):
        assert torch.equal(got, exact)


def test_a_cpu_gets_the_reference_of_the_layer() -> None:
    tensors = raw()
    out, kv, _ = gdn_layer_core(**tensors, frames=2)
    state = naive.State(tensors.pop("state_kv"), tensors.pop("state_z"))
    wanted, after = naive_layer.gdn_layer_core(**tensors, state=state, frames=2)
    assert torch.equal(out, wanted)
    assert torch.equal(kv, after.kv)


def test_a_cpu_rounds_to_e4m3_as_well() -> None:
    tensors, factor = raw(), torch.tensor([100.0])
    out, narrow = gdn_layer_core(**tensors, frames=2)[0], gdn_layer_core(**tensors, frames=2, factor=factor)[0]
    assert torch.equal(narrow, to_fp8(out, 0.01))


@pytest.mark.parametrize("stateless", [False, True])
def test_pytorch_accepts_the_operators(stateless: bool) -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, tensors, rest in ((gdn, prepared(), ()), (gdn_layer_core, raw(), (2,))):
        if stateless:
            tensors |= {"state_kv": None, "state_z": None}
        torch.library.opcheck(operator, (*tensors.values(), *rest, "bf16"), test_utils=checks)


def test_export_carries_the_operator() -> None:
    class Block(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            out, kv, z = gdn(*tensors, "tf32")
            return out + 1, kv, z

    tensors = tuple(prepared().values())
    program = torch.export.export(Block(), tensors)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.sana.gdn.default) == 1
    assert off(program.module()(*tensors)[0], gdn(*tensors)[0] + 1) == 0


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Named], None]:
    def apply(tensors: Named) -> None:
        tensors[name] = change(tensors[name])

    return apply


GDN_REFUSALS = {
    "rank": (changed("q", lambda x: x[0]), r"q has shape \(2, 2, 5, 16\), expected \(batch rows, heads"),
    "size": (changed("k", lambda x: x[..., :8]), r"k has shape \(1, 2, 2, 5, 8\), expected 16 key channels"),
    "frames": (changed("decay", lambda x: x[..., :1]), r"decay has shape \(1, 2, 1\), expected 2 frames"),
    "nothing": (
        changed("q", lambda x: x[:, :, :, :0]),
        r"q has shape \(1, 2, 2, 0, 16\), without any tokens per frame",
    ),
    "mixed": (changed("v", Tensor.bfloat16), r"v is torch.bfloat16, expected torch.float32"),
    "double": (changed("q", Tensor.double), r"q is torch.float64, expected torch.float32, torch.bfloat16"),
    "state": (changed("state_kv", Tensor.half), r"state_kv is torch.float16, expected torch.float32"),
    "stride": (changed("q_rot", lambda x: x.mT.contiguous().mT), r"q_rot has strides .*, make it contiguous"),
    "half a state": (
        lambda tensors: tensors.update(state_z=None),
        "state_kv and state_z go together, got state_kv alone",
    ),
    "device": (changed("beta", lambda x: x.to("meta")), "beta is on meta, but the others are on cpu"),
}


@pytest.mark.parametrize(("change", "message"), GDN_REFUSALS.values(), ids=GDN_REFUSALS)
def test_the_operator_refuses_by_name(change: Callable[[Named], None], message: str) -> None:
    tensors = prepared()
    change(tensors)
    with pytest.raises(KernelError, match=f"gdn: {message}"):
        run_gdn(**tensors)


LAYER_REFUSALS = {
    "frames": ({"frames": 3}, "q has 10 tokens, which are not 3 equal frames"),
    "precision": ({"precision": "fp8"}, "unknown precision 'fp8', choose one of fp32, tf32, bf16"),
    "transposed": ({"v": torch.zeros(1, 32, 10).mT}, r"v has strides .*, expected columns of a contiguous \(B, N, C\)"),
    "weight": ({"k_weight": torch.zeros(16)}, r"k_weight has shape \(16,\), expected 32 channels"),
    "angles": ({"rope": torch.zeros(10, 8)}, r"rope has shape \(10, 8\), expected 16 key channels"),
    "heads": ({name: torch.zeros(1, 10, 5) for name in ("beta", "rate")}, "32 channels do not make 5 heads"),
}


@pytest.mark.parametrize(("change", "message"), LAYER_REFUSALS.values(), ids=LAYER_REFUSALS)
def test_the_layer_refuses_by_name(change: Named, message: str) -> None:
    arguments = {**raw(), "frames": 2} | change
    if "beta" in change:
        arguments |= {"rate_bias": torch.zeros(5), "a_log": torch.zeros(5)}
    with pytest.raises(KernelError, match=f"gdn_layer_core: {message}"):
        run_gdn_layer_core(**arguments)


def test_a_head_that_does_not_fit_is_refused() -> None:
    tensors = [x.float() for x in operands((1, 1, 1, 4, 144, 16))]
    with pytest.raises(KernelError, match="k has heads of 144 channels, the kernels take at most 128"):
        run_gdn(*tensors, None, None)


def test_a_device_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sana_kernels.launcher.interpreted", lambda: False)
    with pytest.raises(KernelError, match="the tensors are on cpu, the kernels need a CUDA device"):
        architecture(torch.device("cpu"))


def test_an_unknown_architecture_takes_the_nearest_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    launch.launch_for.cache_clear()
    for _ in range(2):
        assert launch.launch_for(103, "bf16") is launch.LAUNCHES[100, "bf16"]
    assert caplog.messages == ["no launch parameters for sm_103: using those of sm_100"]
