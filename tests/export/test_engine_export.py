"""What TensorRT is given: types at the border of a graph, names of its nodes, and weights in BF16."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from micro import MICRO
from sana_export.checkpoint import resolve
from sana_export.engine_export import engine_model, export_engine
from sana_export.engine_graphs import STAGES, engine_graphs, write_gdn_as
from sana_export.graphs import Graph, denoiser_graphs, vae_graphs
from sana_quant.calibration import Calibration
from sana_quant.groups import layers
from sana_quant.policy import load_policy
from sana_runtime.errors import BuildError, ConfigError

BF16, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT
CHECKPOINT = resolve("random:0", MICRO)
DEPTH = MICRO.dit.depth
GDN_BLOCKS = DEPTH - len(MICRO.dit.softmax_blocks)


def graph(stage: str, variant: str) -> Graph:
    return next(graph for graph in engine_graphs(stage, MICRO, CHECKPOINT) if graph.variant == variant)


@pytest.fixture(scope="module")
def steady() -> ir.Model:
    return engine_model(graph("denoiser", "steady"))


def kinds(values: Iterator[ir.Value]) -> dict[str, ir.DataType]:
    return {str(value.name): value.dtype for value in values}


def test_the_border_is_fp32_and_state_bf16_but_for_the_gdn_state(steady: ir.Model) -> None:
    inputs, outputs = kinds(iter(steady.graph.inputs)), kinds(iter(steady.graph.outputs))
    wide = {"latent", "source", "timestep", "recent_valid", "block00.state_kv.in", "block00.state_z.in"}
    assert {inputs[name] for name in wide} == {FLOAT}
    assert {inputs[f"block{DEPTH - 1:02d}.{name}"] for name in ("sink_k.in", "recent_v.in", "tconv.in")} == {BF16}
    assert {inputs[name] for name in ("block00.text_k", "text_bias")} == {BF16}
    assert outputs["velocity"] == outputs["block00.state_kv.out"] == FLOAT
    assert outputs["block00.tconv.out"] == BF16
    read = {name.removesuffix(".in"): kind for name, kind in inputs.items() if name.endswith(".in")}
    assert all(read[name.removesuffix(".out")] == kind for name, kind in outputs.items() if name.endswith(".out"))


def test_frames_are_bytes_on_both_ends_of_the_vae() -> None:
    encoder, decoder = (graph(stage, "steady") for stage in ("vae_encoder", "vae_decoder"))
    (frames, *read), (source, *written) = encoder.inputs.values(), encoder.outline().values()
    (latent, *past), (edited, *left) = decoder.inputs.values(), decoder.outline().values()
    assert frames.dtype == edited.dtype == torch.uint8
    assert source.dtype == latent.dtype == torch.float32
    assert {tensor.dtype for tensor in (*read, *written, *past, *left)} == {torch.bfloat16}


def test_every_linear_is_called_by_its_module_path(steady: ir.Model) -> None:
    products = Counter(node.name for node in steady.graph if node.op_type == "MatMul")
    wanted = {layer.path for layer in layers(DEPTH) if layer.group != "CA-KV"}
    gates = {f"blocks.{block}.attn.output_gate" for block in range(DEPTH)}
    assert wanted | gates <= products.keys()
    assert max(products.values()) == 1
    assert all(node.name.startswith("blocks.0.attn") for node in steady.graph if node.name.startswith("blocks.0.attn/"))


def test_a_policy_leaves_the_other_stages_alone(tmp_path: Path) -> None:
    text = graph("text_encoder", "prompt")
    other = replace(text, inputs={name: tensor[:, : MICRO.dit.text_tokens] for name, tensor in text.inputs.items()})
    assert export_engine(other, tmp_path / "prompt.onnx", load_policy("mpq", DEPTH)) == ()
    assert (tmp_path / "prompt.onnx.data").stat().st_size > 1000
    assert ir.load(tmp_path / "prompt.onnx").opset_imports[""] == 23


def test_a_written_file_holds_no_trace_of_the_building_machine(tmp_path: Path) -> None:
    calibration = Calibration({layer.path: 4.0 for layer in layers(DEPTH)})
    policy = load_policy("mpq", DEPTH)
    found = export_engine(graph("denoiser", "prompt"), tmp_path / "prompt.onnx", policy, calibration)
    assert {layer.group for layer in found} == {"CA-KV"}
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "prompt.onnx").read_bytes()


def test_a_policy_without_ranges_names_the_layer(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no entry for the layer blocks\.0\.cross_attn\.kv_linear"):
        export_engine(graph("denoiser", "prompt"), tmp_path / "prompt.onnx", load_policy("fp8", DEPTH))


def test_an_unknown_name_lists_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="text_encoder"):
        engine_graphs("refiner", MICRO, CHECKPOINT)
    with pytest.raises(ConfigError, match="plugin-bf16"):
        write_gdn_as("triton", (), torch.nn.Identity())
    assert set(STAGES) == {"text_encoder", "vae_encoder", "denoiser", "vae_decoder"}


@pytest.mark.parametrize("part", ["dit", "vae"])
def test_bf16_weights_are_the_fp32_ones_rounded(part: str) -> None:
    load, config = getattr(CHECKPOINT, f"load_{part}"), getattr(MICRO, part)
    wide, narrow = load(config).state_dict(), load(config, torch.bfloat16).state_dict()
    for name, tensor in narrow.items():
        assert tensor.dtype == (torch.float32 if name.endswith(("A_log", "dt_bias")) else torch.bfloat16)
        # The VAE draws in its own precision; the transformer's numbers are drawn once and then rounded.
        assert part == "vae" or torch.equal(tensor, wide[name].to(tensor.dtype))


def test_an_outline_is_what_a_run_returns_in_shape_and_type() -> None:
    dit, text = CHECKPOINT.load_dit(MICRO.dit), torch.zeros(1, MICRO.dit.text_tokens, MICRO.dit.caption_width)
    mask = torch.ones(1, MICRO.dit.text_tokens)
    every = (*denoiser_graphs(dit, MICRO, text, mask), *vae_graphs(CHECKPOINT.load_vae(MICRO.vae), MICRO.geometry))
    for graph in every:
        outline, run = graph.outline(), graph.run()
        assert {k: (v.shape, v.dtype) for k, v in outline.items()} == {k: (v.shape, v.dtype) for k, v in run.items()}


@pytest.mark.parametrize(("variant", "inputs"), [("first", 7), ("steady", 9)])
def test_every_gdn_core_can_be_one_node(variant: str, inputs: int) -> None:
    chosen = graph("denoiser", variant)
    write_gdn_as("plugin-bf16", (120, 121), chosen.module)
    model = engine_model(chosen)
    nodes = cores(model)
    assert len(nodes) == GDN_BLOCKS
    assert {len(node.inputs) for node in nodes} == {inputs}
    assert nodes[0].name == "blocks.0.attn/SanaGDN"
    states = {value.name for node in nodes for value in node.outputs[1:]}
    assert {"block00.state_kv.out", "block00.state_z.out"} <= states
    write_gdn_as("native", (), chosen.module)
    assert not cores(engine_model(chosen))


def cores(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if (node.domain, node.op_type) == ("sana", "SanaGDN")]
