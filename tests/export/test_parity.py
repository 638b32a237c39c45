"""The graphs for TensorRT, lowered and run by onnxruntime, against the fake-quantised model in PyTorch."""

from dataclasses import replace

import onnx_ir as ir
import pytest
import torch

from micro import MICRO
from sana_export.blocks import BLOCKS, single_block
from sana_export.checkpoint import resolve
from sana_export.configs import SANA_STREAMING, ModelConfig
from sana_export.engine_export import engine_model
from sana_export.graphs import Graph, denoiser_graphs
from sana_export.parity import compare
from sana_quant.calibration import Calibration, observe
from sana_quant.fake import fake_quantised
from sana_quant.groups import CHUNK_GROUPS, PROMPT_GROUPS
from sana_quant.policy import load_policy
from sana_quant.qdq import insert

LIMIT = 1e-5
"""A tenth of what is asked for; 1e-6 is measured."""

SMALL = {"height": 64, "width": 128}
"""Few tokens: the width of the layers is what matters here."""


class Case:
    """One model: its wide transformer, the same weights in BF16, and what its layers read."""

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        checkpoint = resolve("random:1", model)
        self.narrow = checkpoint.load_dit(model.dit, torch.bfloat16)
        self.wide = checkpoint.load_dit(model.dit, torch.bfloat16).float()
        generator = torch.Generator().manual_seed(0)
        self.text = torch.randn(1, model.dit.text_tokens, model.dit.caption_width, generator=generator)
        self.mask = (torch.arange(model.dit.text_tokens) < 20).float()[None]
        with observe(self.wide) as observer:
            for graph in denoiser_graphs(self.wide, model, self.text, self.mask):
                graph.run()
        self.calibration: Calibration = observer.calibration({})
        self.models: dict[str, ir.Model] = {}

    def exported(self, variant: str) -> ir.Model:
        if variant not in self.models:
            graphs = denoiser_graphs(self.narrow, self.model, self.text, self.mask, Graph.outline)
            self.models[variant] = engine_model(next(graph for graph in graphs if graph.variant == variant))
        return self.models[variant].clone()

    def errors(self, policy: str, variant: str, calibration: Calibration | None = None) -> dict[str, float]:
        """`calibration` is what the graph is quantised with, if it is to differ from what PyTorch has."""
        chosen = load_policy(policy, self.model.dit.depth)
        quantised = fake_quantised(self.wide, chosen, self.calibration)
        graphs = denoiser_graphs(quantised, self.model, self.text, self.mask)
        reference = next(graph for graph in graphs if graph.variant == variant)
        model = self.exported(variant)
        groups = PROMPT_GROUPS if variant == "prompt" else CHUNK_GROUPS
        insert(model, chosen, calibration or self.calibration, groups)
        return compare(reference, model)[0]


@pytest.fixture(scope="module")
def micro() -> Case:
    return Case(MICRO)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_at_production_width_equals_the_fake_quantised_one(kind: str) -> None:
    errors = Case(replace(single_block(SANA_STREAMING, kind), **SMALL)).errors("mpq", "steady")
    assert sum(name.startswith("blocks.0.") for name in errors) == len(CHUNK_GROUPS)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("variant", ["prompt", "first", "steady"])
def test_a_whole_model_equals_the_fake_quantised_one(micro: Case, variant: str) -> None:
    errors = micro.errors("mpq", variant)
    # -10000, for keys that must not be seen, is -9984 in BF16.
    assert errors.pop("text_bias", 0.0) < 2**-9
    assert max(errors.values()) < LIMIT, errors


def test_another_range_in_the_graph_is_noticed(micro: Case) -> None:
    path = f"blocks.{MICRO.dit.depth - 1}.mlp.t_conv"
    other = Calibration({**micro.calibration.amax, path: 1.5 * micro.calibration.of(path)})
    errors = micro.errors("fp8", "steady", other)
    assert errors["velocity"] > 10 * LIMIT
    assert errors[path] < LIMIT
