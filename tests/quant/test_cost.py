"""The cost model against the figures of spec 10, the paper's Table 4, and layers that are counted or measured."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sana_export.configs import MODELS, SANA_STREAMING, DiTConfig
from sana_export.dit import DiT
from sana_export.dit_keys import OPTIONAL, released_shapes
from sana_export.rope import rope_rows
from sana_quant.cost import Rates, ideal_speedup, roofline, shares, state_bytes, weight_bytes
from sana_quant.groups import GROUPS, block_ranges
from sana_quant.policy import Policy, load_policy
from sana_quant.work import ChunkShape, Work, linear, transformer_work
from small_dit import CONFIG, HEIGHT, WIDTH, latents, make_prompt, small_dit

DIT = SANA_STREAMING.dit
STEADY = ChunkShape(latents=3, past_latents=8, tokens_per_frame=880)
WORK = transformer_work(DIT, STEADY)
STORED = {name: math.prod(shape) for name, shape in released_shapes(DIT).items() if name not in OPTIONAL}
BASIC_MIX = ("CA-O", "SA-Q", "SA-K", "FFN-Temporal")
FFN = ("FFN-Input", "FFN-Output")
EVERY = range(20)
H200 = Rates({"bf16": 790e12, "fp8": 1471e12}, 4.27e12)

Choice = dict[str, range]
"""Groups in NVFP4, and in which blocks; everything else is FP8, as in the paper's search."""


def searched(choice: Choice) -> Policy:
    groups = {group: tuple("nvfp4" if block in choice.get(group, ()) else "fp8" for block in EVERY) for group in GROUPS}
    return Policy("searched", "", "bf16", groups)


def mix(ffn_blocks: range) -> Choice:
    return dict.fromkeys(BASIC_MIX, EVERY) | dict.fromkeys(FFN, ffn_blocks)


def significant(value: float) -> float:
    """Rounded to three digits."""
    return float(f"{value:.3g}")


# Spec 10: parameters as stored, share of the stored file, GFLOP, share of the ten groups, share of all.
@pytest.mark.parametrize(
    ("group", "millions", "of_stored", "gflop", "of_groups", "of_all"),
    [
        ("FFN-Input", 602.381, 26.66, 3179.15, 32.92, 27.44),
        ("FFN-Output", 301.056, 13.32, 1589.58, 16.46, 13.72),
        ("FFN-Temporal", 301.056, 13.32, 1589.58, 16.46, 13.72),
        ("SA-Q", 100.352, 6.66, 529.86, 5.49, 4.57),
        ("SA-K", 100.352, 6.66, 529.86, 5.49, 4.57),
        ("SA-V", 100.352, 4.44, 529.86, 5.49, 4.57),
        ("SA-O", 100.397, 4.44, 529.86, 5.49, 4.57),
        ("CA-Q", 100.397, 4.44, 529.86, 5.49, 4.57),
        ("CA-O", 100.397, 4.44, 529.86, 5.49, 4.57),
        ("CA-KV", 200.794, 8.89, 120.42, 1.25, 1.04),
    ],
)
def test_the_groups_of_the_spec(
    group: str, millions: float, of_stored: float, gflop: float, of_groups: float, of_all: float
) -> None:
    work = [item for item in WORK if item.group == group]
    flops = sum(item.flops for item in work)
    assert len(work) == DIT.depth
    assert round(sum(item.parameters for item in work) / 1e6, 3) == millions
    assert round(flops / 1e9, 2) == gflop
    assert round(100 * flops / sum(item.flops for item in WORK if item.group), 2) == of_groups
    assert round(100 * flops / sum(item.flops for item in WORK), 2) == of_all
    # The file also stores unused taps of SA-Q and SA-K, which the import drops.
    module = "attn.q." if group == "SA-Q" else f"{GROUPS[group]}."
    stored = sum(count for name, count in STORED.items() if f".{module}" in name.replace(".conv.", "."))
    assert round(100 * stored / sum(STORED.values()), 2) == of_stored


@pytest.mark.parametrize(
    ("prefix", "millions", "gflop"),
    [
        ("attn.output_gate", 100.397, 529.86),
        ("t_block", 30.119, 0.06),
        ("y_embedder", 10.183, 6.11),
        ("t_embedder", 5.596, 0.01),
        ("mlp.depth_conv", 2.688, 12.77),
        (("attn.beta_proj", "attn.gate_proj"), 1.345, 3.55),
        ("x_embedder", 0.576, 3.03),
        ("final_layer.linear", 0.287, 1.51),
    ],
)
def test_the_layers_outside_the_groups(prefix: str | tuple[str, ...], millions: float, gflop: float) -> None:
    work = [item for item in WORK if item.name.startswith(prefix) and item.group is None]
    assert round(sum(item.parameters for item in work) / 1e6, 3) == millions
    assert round(sum(item.flops for item in work) / 1e9, 2) == gflop


@pytest.mark.parametrize(
    ("name", "softmax", "gflop"), [("attn", True, 1144.87), ("cross_attn", None, 141.93), ("attn", False, 84.94)]
)
def test_the_attention_cores(name: str, softmax: bool | None, gflop: float) -> None:
    cores = [item for item in WORK if item.name == name]
    if softmax is not None:
        cores = [item for item in cores if (item.block in DIT.softmax_blocks) == softmax]
    assert round(sum(item.flops for item in cores) / 1e9, 2) == gflop


def test_the_totals_of_the_spec() -> None:
    assert sum(item.parameters for item in WORK) == 2_159_177_648
    assert round(sum(item.flops for item in WORK if item.group) / 1e9, 1) == 9657.9
    assert round(sum(item.flops for item in WORK) / 1e9, 1) == 11586.5


# Spec 10: policies, without padding.
@pytest.mark.parametrize(
    ("choice", "gflop", "percent", "speedup"),
    [
        ({}, 0, 0, 2.00),
        (mix(range(0)), 3179.15, 32.92, 2.39),
        (mix(range(14, 20)), 4609.77, 47.73, 2.63),
        (mix(range(6, 20)), 6517.26, 67.48, 3.02),
        (mix(EVERY), 7947.88, 82.29, 3.40),
        (dict.fromkeys(GROUPS, range(6)), 2897.36, 30, 2.35),
        (dict.fromkeys(GROUPS, range(6, 14)), 3863.15, 40, 2.50),
        (dict.fromkeys(GROUPS, range(14, 20)), 2897.36, 30, 2.35),
        (dict.fromkeys(GROUPS, EVERY), 9657.88, 100, 4.00),
    ],
)
def test_the_policies_of_the_spec(choice: Choice, gflop: float, percent: float, speedup: float) -> None:
    parts = shares(WORK, searched(choice))
    four = sum(part.flops for part in parts if part.precision == "nvfp4")
    assert round(four / 1e9, 2) == gflop
    assert round(100 * four / sum(part.flops for part in parts), 2) == percent
    assert round(ideal_speedup(parts, padded=False), 2) == speedup


# Paper, Table 4: parameters (M) and GFLOP in FP4, their shares in percent, speed-up. Outputs are padded to 128.
SINGLE = {
    "FFN-Input": (602, 3179, 29, 32, 2.39),
    "FFN-Output": (310, 1635, 15, 17, 2.18),
    "FFN-Temporal": (310, 1635, 15, 17, 2.18),
    "SA-O": (103, 545, 5, 6, 2.06),
    "SA-Q": (103, 545, 5, 6, 2.06),
    "SA-K": (103, 545, 5, 6, 2.06),
    "SA-V": (103, 545, 5, 6, 2.06),
    "CA-Q": (103, 545, 5, 6, 2.06),
    "CA-O": (103, 545, 5, 6, 2.06),
    "CA-KV": (201, 120, 10, 1, 2.01),
}
MIXED = [
    ({}, (0, 0, 0, 0, 2.00)),
    (mix(range(0)), (619, 3270, 30, 33, 2.40)),
    (mix(range(14, 20)), (893, 4710, 44, 48, 2.63)),
    (mix(range(6, 20)), (1258, 6640, 62, 67, 3.02)),
]


@pytest.mark.parametrize("group", SINGLE)
def test_the_single_groups_of_table_4(group: str) -> None:
    weights, flops, *rest = four_bit(searched({group: EVERY}))
    assert (round(weights), round(flops), *rest) == SINGLE[group]


@pytest.mark.parametrize(("choice", "printed"), MIXED)
def test_the_mixes_of_table_4(choice: Choice, printed: tuple[float, ...]) -> None:
    """The paper prints the FLOPs of these, and of the block ranges, to three digits."""
    weights, flops, *rest = four_bit(searched(choice))
    assert (round(weights), significant(flops), *rest) == printed


@pytest.mark.parametrize(
    ("blocks", "printed"),
    [
        ("shallow", (612, 2950, 30, 30, 2.35)),
        ("middle", (816, 3940, 40, 40, 2.50)),
        ("deep", (612, 2950, 30, 30, 2.35)),
        ("all", (2040, 9840, 100, 100, 4.00)),
    ],
)
def test_the_block_ranges_of_table_4(blocks: str, printed: tuple[float, ...]) -> None:
    """The paper takes shares of a total that it has rounded to 2040 M; of 2041.4 M the middle one would be 817."""
    chosen = EVERY if blocks == "all" else block_ranges(DIT.depth)[blocks]
    weights, flops, *rest = four_bit(searched(dict.fromkeys(GROUPS, chosen)))
    total = sum(item.weights * item.padding for item in WORK if item.group) / 1e6
    assert (round(weights / total * significant(total)), significant(flops), *rest) == printed


def four_bit(policy: Policy) -> tuple[float, float, int, int, float]:
    """Padded parameters in M and GFLOP in NVFP4, their shares in whole percent, and the speed-up to two digits."""
    parts = shares(WORK, policy)
    weights, flops = (
        [getattr(part, name) for part in parts if part.precision == "nvfp4"]
        for name in ("padded_weights", "padded_flops")
    )
    percent = (
        round(100 * sum(values) / sum(getattr(part, name) for part in parts))
        for name, values in (("padded_weights", weights), ("padded_flops", flops))
    )
    return sum(weights) / 1e6, sum(flops) / 1e9, *percent, round(ideal_speedup(parts), 2)


def test_only_the_width_of_the_output_is_padded() -> None:
    square = linear("attn.q", 2640, 2240, 2240, block=0)
    assert square.flops * square.padding == pytest.approx(2 * 2640 * 2240 * 2304)
    assert linear("mlp.t_conv", 2640, 6720, 2240, block=0).padding == 2304 / 2240
    assert linear("mlp.inverted_conv", 2640, 2240, 13440, block=0).padding == 1


def test_mpq_has_the_layers_of_the_paper() -> None:
    counts = {part.precision: part.layers for part in shares(WORK, load_policy("mpq", 20))}
    assert counts == {"nvfp4": 4 * 20 + 2 * 14, "fp8": 4 * 20 + 2 * 6}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_parameter_of_the_module_is_counted(name: str) -> None:
    config = MODELS[name].dit
    with torch.device("meta"):
        model = DiT(config)
    counted = transformer_work(config, STEADY)
    assert sum(item.parameters for item in counted) == sum(parameter.numel() for parameter in model.parameters())


def test_the_layers_have_the_weights_of_the_modules() -> None:
    config = DiTConfig(depth=4, hidden=64, heads=2, latent_channels=8, source_channels=8, caption_width=128)
    with torch.device("meta"):
        modules = dict(DiT(config).named_modules())
    ours = {path(item): item.weights for item in transformer_work(config, STEADY) if item.weights}
    layers = {name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert ours.keys() == layers
    assert all(count == modules[name].weight.numel() for name, count in ours.items())


def path(item: Work) -> str:
    return item.name if item.block is None else f"blocks.{item.block}.{item.name}"


def test_the_flops_of_the_layers_are_those_of_a_forward_pass() -> None:
    dit = small_dit()
    seen: dict[str, int] = {}
    for name, module in dit.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(partial(count, seen, name))
    rope = rope_rows(CONFIG.head_dim, range(5), HEIGHT, WIDTH)
    dit(*latents(5, 1), torch.tensor([743.0]), make_prompt(dit, 0), rope)
    layers = [item for item in transformer_work(CONFIG, ChunkShape(5, 0, HEIGHT * WIDTH)) if item.weights]
    assert {path(item): item.flops for item in layers} == seen


def count(seen: dict[str, int], name: str, layer: nn.Linear | nn.Conv2d, inputs: Any, output: torch.Tensor) -> None:
    """Two FLOPs for every weight behind every value of the output."""
    seen[name] = 2 * output.numel() * layer.weight[0].numel()


@pytest.mark.parametrize(("policy", "milliseconds"), [("bf16", 73), ("fp8", 45)])
def test_the_arithmetic_alone_takes_the_known_floor_on_an_h200(policy: str, milliseconds: int) -> None:
    """Five passes at the measured ceilings, nothing padded, with a memory that costs nothing."""
    unpadded = [replace(item, padding=1.0) for item in WORK]
    seconds = roofline(unpadded, load_policy(policy, 20), Rates(H200.flops, math.inf))
    assert seconds is not None
    assert round(5e3 * seconds) == milliseconds


def test_the_memory_alone_takes_the_known_floor_of_the_gdn_operator() -> None:
    core = next(item for item in WORK if item.name == "attn" and item.block == 0)
    assert round(1e6 * roofline([core], load_policy("bf16", 20), H200)) == 14


def test_a_layer_takes_the_longer_of_arithmetic_and_memory() -> None:
    layer = [linear("attn.q", 1000, 128, 128, biased=False, block=0)]
    policy = load_policy("bf16", 1)
    moved = 2 * (128 * 128 + 2 * 1000 * 128)
    assert roofline(layer, policy, Rates({"bf16": 1e9}, 1e12)) == pytest.approx(2 * 1000 * 128 * 128 / 1e9)
    assert roofline(layer, policy, Rates({"bf16": 1e15}, 1e6)) == pytest.approx(moved / 1e6)


def test_a_missing_ceiling_gives_no_time() -> None:
    assert roofline(WORK, load_policy("mpq", 20), H200) is None


# Sizes of the exported graphs and engine of the 20-block model, in GB.
@pytest.mark.parametrize(("policy", "gigabytes"), [("bf16", 4.32), ("mpq", 1.77)])
def test_the_weights_have_the_size_of_the_exported_ones(policy: str, gigabytes: float) -> None:
    assert round(weight_bytes(WORK, load_policy(policy, 20)) / 1e9, 2) == gigabytes


def test_nvfp4_stores_a_scale_per_sixteen_weights() -> None:
    layer = [linear("attn.q", 1, 160, 100, biased=False, block=0)]
    assert weight_bytes(layer, load_policy("fp4", 1)) == 160 * 100 / 2 + 10 * 100


def test_the_state_of_a_stream() -> None:
    """Spec 4.5: 15 GDN blocks of 1.00 MB, 0.009 MB and a 3.94 MB tail, 5 softmax blocks of 63.1 MB and a tail."""
    megabytes = state_bytes(DIT, STEADY, load_policy("mpq", 20)) / 1e6
    assert megabytes == pytest.approx(15 * (1.00352 + 0.00896 + 3.9424) + 5 * (63.0784 + 3.9424))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_any_model_and_chunk_has_a_cost(name: str) -> None:
    config = MODELS[name].dit
    first = transformer_work(config, ChunkShape(5, 0, 8))
    steady = transformer_work(config, ChunkShape(3, 8, 8))
    policy = load_policy("mpq", config.depth)
    # The same weights, and 5/3 of the FLOPs in every layer that works on tokens.
    assert weight_bytes(first, policy) == weight_bytes(steady, policy)
    for longer, shorter in zip(first, steady, strict=True):
        if longer.weights and not longer.per_prompt and not longer.name.startswith("t_"):
            assert longer.flops * 3 == shorter.flops * 5
