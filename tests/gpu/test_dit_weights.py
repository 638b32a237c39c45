"""Weights as the engines hold them."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from sana_gpu.dit import prepare_dit, stored_precisions
from sana_gpu.linear import Linear
from sana_kernels.naive_dit import to_fp8
from sana_quant.groups import layers
from sana_quant.numerics import fake_fp8, fp8_scale, quantise_weight
from sana_runtime.errors import ConfigError
from small_dit import CONFIG, small_dit

PATHS = [layer.path for layer in layers(CONFIG.depth)]
MIXED = dict.fromkeys(PATHS, "bf16") | {"blocks.0.attn.k": "fp8", "blocks.1.mlp.t_conv": "fp8"}
AMAX = dict.fromkeys(PATHS, 3.0)


def prepared(precision: dict[str, str], amax: dict[str, float] = AMAX) -> dict[str, Tensor]:
    return prepare_dit(asdict(CONFIG), small_dit().state_dict(), precision, amax)


@pytest.mark.parametrize("precision", [dict.fromkeys(PATHS, "fp8"), dict.fromkeys(PATHS, "bf16"), MIXED])
def test_the_policy_can_be_read_off_the_tensors(precision: dict[str, str]) -> None:
    assert stored_precisions(prepared(precision)) == precision


def test_what_one_tensor_feeds_is_one_product() -> None:
    weights = prepared({})
    joined = weights["blocks.0.attn.q+k+v+output_gate+beta_proj+gate_proj.weight"]
    assert torch.equal(joined[: CONFIG.hidden], small_dit().state_dict()["blocks.0.attn.q.weight"].bfloat16())
    assert len(joined) % 128 == 0


def test_an_fp8_product_is_that_of_the_rounded_operands() -> None:
    weights = prepare_dit(asdict(CONFIG), small_dit().state_dict(), MIXED, AMAX, torch.float32)
    linear = Linear.load(weights, "blocks.0.attn.k")
    x = torch.randn(1, 5, CONFIG.hidden)
    assert linear.step == fp8_scale(AMAX["blocks.0.attn.k"])
    rounded, _ = quantise_weight(small_dit().state_dict()["blocks.0.attn.k.weight"], "fp8")
    torch.testing.assert_close(linear((x, to_fp8(x, linear.step))), fake_fp8(x, linear.step) @ rounded.T)


def test_nvfp4_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"layer blocks.0.attn.q is to be in nvfp4, which the torch backend has no"):
        prepared({"blocks.0.attn.q": "nvfp4"})


def test_a_layer_without_a_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer blocks.0.attn.k is to be in fp8 and its input has no range"):
        prepared(MIXED, {})
