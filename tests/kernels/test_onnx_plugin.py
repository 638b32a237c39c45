"""The model's own attention: exported with one node for the recurrence, and equal to the fused layer core."""

from functools import partial

import pytest
import torch
from gdn_cases import carried, off

from sana_export.attention import GDNAttention
from sana_export.caches import GDNCache
from sana_export.rope import rope_rows
from sana_kernels import naive_layer
from sana_kernels.naive import State
from sana_kernels.onnx_plugin import gdn_node

HEADS, FRAMES, HEIGHT, WIDTH, HEAD = 2, 3, 2, 3, 12


def attention() -> GDNAttention:
    generator = torch.Generator().manual_seed(0)
    layer = GDNAttention(HEADS * HEAD, HEADS)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer.eval()


def cache() -> GDNCache:
    kv, z = carried((1, HEADS, FRAMES, HEIGHT * WIDTH, HEAD, HEAD))
    return GDNCache(kv.float(), z.float(), torch.zeros(0))


@torch.no_grad()
def test_the_layer_core_is_the_attention_between_its_projections() -> None:
    layer, past = attention().double(), cache()
    past = GDNCache(past.state_kv.double(), past.state_z.double(), past.tconv)
    x = torch.randn(1, FRAMES * HEIGHT * WIDTH, HEADS * HEAD, dtype=torch.float64)
    cos, sin = (table.double() for table in rope_rows(HEAD, range(FRAMES), HEIGHT, WIDTH))
    wanted, after = layer(x, FRAMES, (cos, sin), past, None)
    raw = {"q": layer.q(x), "k": layer.k(x), "v": layer.v(x), "gate": layer.output_gate(x)}
    raw |= {"beta": layer.beta_proj(x), "rate": layer.gate_proj(x), "rate_bias": layer.dt_bias, "a_log": layer.A_log}
    raw |= {
        "q_weight": layer.q_norm.weight,
        "k_weight": layer.k_norm.weight,
        "rope": torch.stack([cos, sin], -1).flatten(-2),
    }
    state = State(past.state_kv, past.state_z)
    core, state = naive_layer.gdn_layer_core(**raw, state=state, frames=FRAMES)
    assert off(layer.proj(core), wanted) < 1e-12
    assert off(state.kv, after.kv) < 1e-12
    assert off(state.z, after.z) < 1e-12


def nodes(layer: GDNAttention, past: GDNCache | None) -> list[str]:
    """Names of what an export of the layer calls."""

    class Chunk(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out, state = self.layer(x, FRAMES, rope_rows(HEAD, range(FRAMES), HEIGHT, WIDTH), past, None)
            return out, *state

    x = torch.zeros(1, FRAMES * HEIGHT * WIDTH, HEADS * HEAD)
    return [str(node.target) for node in torch.export.export(Chunk(), (x,)).graph.nodes]


@pytest.mark.parametrize("carrying", [True, False])
def test_an_export_has_one_node_for_the_recurrence(carrying: bool) -> None:
    layer, past = attention(), cache() if carrying else None
    products = sum("matmul" in name for name in nodes(layer, past))
    layer.core = partial(gdn_node, precision="bf16", architectures=(120, 121))
    replaced = nodes(layer, past)
    assert products > 0
    assert not any("matmul" in name for name in replaced)
    assert sum("symbolic_multi_out" in name for name in replaced) == 1
