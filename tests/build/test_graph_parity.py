"""What a build measures of its graphs before it compiles them, by which parts, and when it goes no further."""

import json
import math
from pathlib import Path

import pytest
import torch

from micro import MICRO
from sana_build import graph_parity
from sana_build.cache import Cache
from sana_build.graph_parity import measure_parities, middle_blocks, parities
from sana_build.workshop import StepRunner
from sana_export.blocks import single_block
from sana_export.checkpoint import resolve
from sana_export.configs import SANA_STREAMING, TINY
from sana_export.parity import Part, block_of
from sana_quant.calibration import Calibration
from sana_quant.groups import layers
from sana_quant.policy import load_policy
from sana_runtime.errors import BuildError

DEPTH = MICRO.dit.depth
CHECKPOINT = resolve("random:0", MICRO)
CALIBRATION = Calibration({layer.path: 4.0 + layer.block for layer in layers(DEPTH)})
MPQ = load_policy("mpq", DEPTH)
BLOCK = single_block(MICRO, "softmax")


def test_one_block_of_each_kind_stands_for_a_large_transformer() -> None:
    assert middle_blocks(SANA_STREAMING.dit) == [9, 11]
    gdn, softmax = middle_blocks(TINY.dit)
    assert softmax in TINY.dit.softmax_blocks
    assert gdn not in TINY.dit.softmax_blocks


def test_a_block_takes_its_own_part_of_the_policy_and_of_the_ranges() -> None:
    part = block_of(MICRO, CHECKPOINT.load_dit(MICRO.dit), 3)
    assert (part.model.dit.depth, part.model.dit.softmax_blocks) == (1, (0,))
    assert part.policy(MPQ).groups["FFN-Input"] == MPQ.groups["FFN-Input"][3:]
    assert set(part.calibration(CALIBRATION).amax.values()) == {7.0}
    assert len(part.calibration(CALIBRATION).amax) == 10
    assert part.calibration(Calibration({})).amax == {}


def test_a_block_alone_computes_what_it_computes_among_the_others() -> None:
    dit = CHECKPOINT.load_dit(MICRO.dit)
    part = block_of(MICRO, dit, 2).dit
    assert part.blocks[0] is dit.blocks[2]
    assert all(
        torch.equal(own, dit.get_parameter(name)) for name, own in part.named_parameters() if "blocks" not in name
    )


def test_blocks_of_a_large_transformer_are_measured_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_parity, "WHOLE_BELOW", 0)
    measure_parities(MICRO, CHECKPOINT, CALIBRATION, {"key": MPQ}, Cache(tmp_path))
    found = json.loads((tmp_path / "parities/key/parity.json").read_text())
    names = {"graph of block 1 (gdn)", "graph of block 3 (softmax)"}
    assert found.keys() == {"prompt", "first", "steady"}
    assert all(errors.keys() == names for errors in found.values())
    assert 0 < max(error for errors in found.values() for error in errors.values()) < 1e-5


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    runner = StepRunner(Cache(tmp_path), lambda what: None)

    def measured(*policies: str) -> dict[str, float]:
        chosen = [load_policy(name, 1) for name in policies]
        found = parities(BLOCK, resolve("random:0", BLOCK), CALIBRATION, chosen, runner)
        return {name: errors["steady"]["graph"] for name, errors in found.items()}

    first = measured("mpq", "bf16")
    assert measured("mpq", "bf16") == first
    assert measured("bf16") == {"bf16": first["bf16"]}
    assert [step.name for step in runner.steps] == ["measure denoiser"]
    assert 0 < first["bf16"] < 1e-5


@pytest.mark.parametrize("error", [2e-4, math.nan])
def test_a_graph_that_computes_something_else_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    def measure(part: Part, policies: list, calibration: Calibration):  # type: ignore[no-untyped-def]
        yield policies[0], "first", {"velocity": 1e-6, "blocks.2.attn.q": error}

    monkeypatch.setattr("sana_export.parity.measure", measure)
    with pytest.raises(BuildError, match=rf"denoiser/first, graph, policy mpq: blocks\.2\.attn\.q is {error:.1e} away"):
        measure_parities(MICRO, CHECKPOINT, CALIBRATION, {"key": MPQ}, Cache(tmp_path))
    assert not (tmp_path / "parities").exists()
