"""The transformer under a policy: only the policy's layers change, and exactly as the number formats say."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sana_export.dit import DiT
from sana_export.rope import rope_rows
from sana_export.sampler import DiTStream, edit_clip
from sana_quant.calibration import Calibration, observe
from sana_quant.fake import FakeQuantLinear, fake_quantised, set_policy
from sana_quant.groups import GROUPS, layers
from sana_quant.numerics import fake_fp8, fake_nvfp4, fp8_scale, nvfp4_scale, nvfp4_weight_scale
from sana_quant.policy import Policy, load_policy
from sana_runtime.errors import ConfigError
from sana_runtime.geometry import clip_boundaries
from sana_runtime.schedule import streaming_schedule
from small_dit import CONFIG, HEIGHT, WIDTH, latents, make_prompt, small_dit, text_and_mask

SCHEDULE = streaming_schedule(2)
CALIBRATION = Calibration({layer.path: 2.5 for layer in layers(CONFIG.depth)})


def uniform(precision: str, **others: str) -> Policy:
    """Every group in one precision, but `others` by the name of their group with _ for -."""
    groups = {group: (others.get(group.replace("-", "_"), precision),) * CONFIG.depth for group in GROUPS}
    return Policy("test", "test", "fp32", groups)


def velocity(dit: DiT, seed: int = 0) -> torch.Tensor:
    noise, source = latents(3, seed)
    rope = rope_rows(CONFIG.head_dim, range(3), HEIGHT, WIDTH, CONFIG.max_frames)
    with torch.inference_mode():
        return dit(noise, source, torch.tensor([961.0]), make_prompt(dit, seed), rope)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_policy_without_quantised_groups_changes_no_bit(precision: str) -> None:
    dit = small_dit()
    assert torch.equal(velocity(fake_quantised(dit, uniform(precision), Calibration({}))), velocity(dit))


def test_fp8_is_near_and_nvfp4_less_so() -> None:
    dit = small_dit()
    with observe(dit) as observer:
        wanted = velocity(dit)
    calibration = observer.calibration({})
    errors = {}
    for precision in ("fp8", "nvfp4"):
        found = velocity(fake_quantised(dit, uniform(precision), calibration))
        errors[precision] = float((found - wanted).std() / wanted.std())
    assert 1e-3 < errors["fp8"] < 0.1
    assert 2 * errors["fp8"] < errors["nvfp4"] < 0.5


@pytest.mark.parametrize(
    ("precision", "scale", "weight_scale", "fake"),
    [("fp8", fp8_scale, fp8_scale, fake_fp8), ("nvfp4", nvfp4_scale, nvfp4_weight_scale, fake_nvfp4)],
)
def test_a_layer_rounds_its_weight_and_its_input(precision: str, scale, weight_scale, fake) -> None:
    dit = small_dit()
    layer = fake_quantised(dit, uniform("fp32", FFN_Input=precision), CALIBRATION).blocks[2].mlp.inverted_conv
    plain = dit.blocks[2].mlp.inverted_conv
    x = torch.randn(1, 6, CONFIG.hidden, generator=torch.Generator().manual_seed(1))
    weight = fake(plain.weight, weight_scale(float(plain.weight.abs().max())))
    assert isinstance(layer, FakeQuantLinear)
    assert torch.equal(layer(x), F.linear(fake(x, scale(2.5)), weight, plain.bias))


def test_only_the_layers_of_the_policy_are_rounded() -> None:
    blocks = ("fp32", "nvfp4", "fp32", "fp8")
    policy = Policy("one", "one", "fp32", uniform("fp32").groups | {"SA-V": blocks})
    copy = fake_quantised(small_dit(), policy, CALIBRATION)
    found = {name: module.precision for name, module in copy.named_modules() if isinstance(module, FakeQuantLinear)}
    assert {name: value for name, value in found.items() if value != "fp32"} == {
        "blocks.1.attn.v": "nvfp4",
        "blocks.3.attn.v": "fp8",
    }
    assert found.keys() == {layer.path for layer in layers(CONFIG.depth)}
    others = [name for name, module in copy.named_modules() if type(module) is nn.Linear]
    assert others == [
        name for name, module in small_dit().named_modules() if type(module) is nn.Linear and name not in found
    ]


def test_the_prompts_keys_and_values_are_rounded_too() -> None:
    dit = small_dit()
    plain, rounded = make_prompt(dit, 0), make_prompt(fake_quantised(dit, uniform("fp32", CA_KV="fp8"), CALIBRATION), 0)
    assert all(not torch.equal(a, b) for a, b in zip(plain.v, rounded.v, strict=True))
    only_self = make_prompt(fake_quantised(dit, uniform("nvfp4", CA_KV="fp32"), CALIBRATION), 0)
    assert all(torch.equal(a, b) for a, b in zip(plain.v, only_self.v, strict=True))


def test_the_copy_shares_the_weights_and_leaves_the_original_alone() -> None:
    dit = small_dit()
    before = velocity(dit)
    copy = fake_quantised(dit, uniform("nvfp4"), CALIBRATION)
    assert [p.data_ptr() for p in copy.parameters()] == [p.data_ptr() for p in dit.parameters()]
    assert torch.equal(velocity(dit), before)


def test_a_policy_can_be_changed_and_the_weights_are_rounded_once() -> None:
    dit = small_dit()
    copy = fake_quantised(dit, uniform("fp8"), CALIBRATION)
    first = velocity(copy)
    rounded = copy.blocks[0].attn.q._fakes["fp8"]
    set_policy(copy, uniform("nvfp4"), CALIBRATION)
    assert torch.equal(velocity(copy), velocity(fake_quantised(dit, uniform("nvfp4"), CALIBRATION)))
    set_policy(copy, uniform("fp8"), CALIBRATION)
    assert torch.equal(velocity(copy), first)
    assert copy.blocks[0].attn.q._fakes["fp8"] is rounded


def test_a_stream_equals_the_whole_clip_and_another_session_does_not_leak_in() -> None:
    copy = fake_quantised(small_dit(), load_policy("mpq", CONFIG.depth), CALIBRATION)
    noise, source = latents(11, 5)
    whole = edit_clip(copy, noise, source, *text_and_mask(0), SCHEDULE, 2, True)
    stream, other = (DiTStream(copy, SCHEDULE, 2, True) for _ in range(2))
    prompt = make_prompt(copy, 0)
    parts = []
    for start, stop in pairwise(clip_boundaries(11)):
        span = slice(start, stop)
        parts.append(stream.step(noise[:, :, span], source[:, :, span], prompt, last=stop == 11))
        other.step(*latents(3, stop), make_prompt(copy, stop))
    assert torch.equal(torch.cat(parts, dim=2), whole)


def test_a_layer_that_was_not_calibrated_is_named() -> None:
    amax = {path: value for path, value in CALIBRATION.amax.items() if path != "blocks.2.cross_attn.proj"}
    with pytest.raises(ConfigError, match=r"no entry for the layer blocks\.2\.cross_attn\.proj: run"):
        fake_quantised(small_dit(), uniform("fp8"), Calibration(amax))


def test_a_width_that_nvfp4_cannot_split_is_refused_with_the_layer() -> None:
    dit = small_dit()
    dit.blocks[1].mlp.point_conv = nn.Linear(40, CONFIG.hidden, bias=False)
    with pytest.raises(ConfigError, match=r"has blocks\.1\.mlp\.point_conv in nvfp4, whose 40 input channels"):
        fake_quantised(dit, uniform("nvfp4"), CALIBRATION)
    fake_quantised(dit, uniform("nvfp4", FFN_Output="fp8"), CALIBRATION)
