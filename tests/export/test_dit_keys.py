import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sana_export.configs import DiTConfig
from sana_export.dit import DiT
from sana_export.dit_keys import OPTIONAL, from_released, released_shapes, to_released
from small_dit import CONFIG, small_dit


@pytest.mark.parametrize(("streaming", "parameters"), [(True, 2_261_305_008), (False, 2_160_953_008)])
def test_the_production_checkpoint(streaming: bool, parameters: int) -> None:
    shapes = released_shapes(DiTConfig(streaming=streaming))
    assert len(shapes) == 588
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert shapes["blocks.3.attn.q.weight"] == ((2240, 2240, 3) if streaming else (2240, 2240))
    assert shapes["blocks.2.attn.q.weight"] == (2240, 2240, 1)
    assert set(OPTIONAL) < shapes.keys()


def test_the_live_parameters_of_the_production_model() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in DiT(DiTConfig()).parameters()) == 2_159_177_648


@pytest.mark.parametrize("streaming", [True, False])
def test_round_trip(streaming: bool) -> None:
    config, state = replace(CONFIG, streaming=streaming), small_dit().state_dict()
    released = to_released(config, state)
    assert {name: tuple(tensor.shape) for name, tensor in released.items()} == released_shapes(config)
    back = from_released(config, released)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_optional_buffers_may_be_absent() -> None:
    released = to_released(CONFIG, small_dit().state_dict())
    back = from_released(CONFIG, {name: tensor for name, tensor in released.items() if name not in OPTIONAL})
    DiT(CONFIG).load_state_dict(back)


def test_side_taps_of_softmax_projections_are_dropped() -> None:
    released = to_released(CONFIG, small_dit().state_dict())
    noisy = {**released, "blocks.3.attn.q.weight": released["blocks.3.attn.q.weight"].clone()}
    noisy["blocks.3.attn.q.weight"][:, :, [0, 2]] = 9.0
    clean, imported = (from_released(CONFIG, tensors)["blocks.3.attn.q.weight"] for tensors in (released, noisy))
    assert torch.equal(imported, clean)


def test_temporal_taps_are_those_of_a_convolution() -> None:
    state = small_dit().state_dict()
    kernel = to_released(CONFIG, state)["blocks.0.mlp.t_conv.weight"]
    frames = torch.randn(1, CONFIG.hidden, 5, 1)
    convolved = F.conv2d(frames, kernel, padding=(1, 0))[0, :, :, 0].T
    padded = F.pad(frames[0, :, :, 0].T, (0, 0, 1, 1))
    stacked = torch.cat([padded[:-2], padded[1:-1], padded[2:]], dim=-1)
    torch.testing.assert_close(stacked @ state["blocks.0.mlp.t_conv.weight"].T, convolved, rtol=1e-4, atol=1e-5)
