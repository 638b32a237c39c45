"""The plugin in a TensorRT-RTX engine, as far as a machine without a GPU can tell."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import printed

from sana_kernels import node
from sana_kernels.aot import Cubin
from sana_kernels.errors import KernelError

plugin = pytest.importorskip("sana_kernels.plugin", reason="tensorrt_rtx is not installed")
trt = plugin.trt


def test_every_gdn_core_is_one_custom_layer_with_its_kernels_inside(tmp_path: Path) -> None:
    built = printed("build_plugin.py", tmp_path)
    cores = [name for kind, name in built["layers"] if kind == "custom_layer"]
    assert len(cores) == len(set(cores)) == 2
    assert not any(kind == "gemm" for kind, _ in built["layers"])
    assert built["programs"] == ["sm_120: summaries scan readout", "sm_120: summaries scan readout, carried"]


def tensor(kind: object, layout: object = trt.TensorFormat.LINEAR) -> SimpleNamespace:
    return SimpleNamespace(desc=SimpleNamespace(type=kind, format=layout))


def test_tokens_share_a_type_and_states_are_float32() -> None:
    made = plugin.Plugin("bf16", (120,))
    bf16, fp32, fp16 = (tensor(kind) for kind in (trt.DataType.BF16, trt.DataType.FLOAT, trt.DataType.HALF))
    row = [*[bf16] * 6, *[fp32] * 3, bf16, fp32, fp32]
    assert all(made.supports_format_combination(position, row, 9) for position in range(12))
    assert not made.supports_format_combination(5, [*row[:5], fp32, *row[6:]], 9)
    assert not made.supports_format_combination(7, [*row[:7], bf16, *row[8:]], 9)
    assert not made.supports_format_combination(0, [fp16, *row[1:]], 9)
    chunked = tensor(trt.DataType.BF16, trt.TensorFormat.CHW32)
    assert not made.supports_format_combination(2, [*row[:2], chunked, *row[3:]], 9)


def program(*architectures: int) -> node.Program:
    return node.Program("tf32", {sm: (Cubin("scan", b"code", (), (1, 1, 1), 32, 0),) for sm in architectures}, {})


def test_what_is_serialised_makes_the_same_plugin_again() -> None:
    fields = plugin.Plugin("tf32", (), program(120, 121)).get_fields_to_serialize()
    again = plugin.Creator().create_plugin("core", fields, None)
    assert (again.precision, again.program) == ("tf32", program(120, 121))


def test_a_card_without_kernels_in_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "driver", lambda: None)
    monkeypatch.setattr(plugin, "current_architecture", lambda library: 89)
    made = plugin.Plugin("bf16", (), program(120, 121))
    with pytest.raises(
        KernelError, match="was compiled for sm_120, sm_121, this card is sm_89: build the engine for it"
    ):
        made.load()


def test_the_library_gets_the_name_that_the_parser_opens(tmp_path: Path) -> None:
    for _ in range(2):
        plugin.link_library(tmp_path)
    assert (tmp_path / plugin.LIBRARY).readlink() == Path(plugin.VERSIONED)
    with pytest.raises(KernelError, match="link it there"):
        plugin.link_library(tmp_path / plugin.LIBRARY)
