"""Observed maxima, and the file they are kept in."""

import json
from pathlib import Path

import pytest
import torch

from sana_export.sampler import DiTStream
from sana_quant.calibration import Calibration, observe
from sana_quant.groups import layers
from sana_runtime.errors import ConfigError
from sana_runtime.schedule import streaming_schedule
from small_dit import CONFIG, latents, make_prompt, small_dit

PATHS = [layer.path for layer in layers(CONFIG.depth)]
WHOLE = Calibration({path: 1.5 + index for index, path in enumerate(PATHS)}, {"clips": ["a.mp4"]})


def stream_step(dit, seed: int = 0) -> None:
    stream = DiTStream(dit, streaming_schedule(2), 2, True)
    with torch.inference_mode():
        stream.step(*latents(3, seed), make_prompt(dit, seed))


def test_every_quantisable_layer_of_the_model_is_seen() -> None:
    dit = small_dit()
    with observe(dit) as observer:
        stream_step(dit)
    calibration = observer.calibration({})
    assert calibration.amax.keys() == set(PATHS)
    assert min(calibration.amax.values()) > 0
    calibration.check(CONFIG.depth)


def test_the_maximum_is_that_of_all_calls() -> None:
    dit = small_dit()
    linear = dit.blocks[0].attn.proj
    with observe(dit) as observer:
        for value in (0.5, -3.25, 1.0):
            linear(torch.full((1, 2, CONFIG.hidden), value))
    assert observer.calibration({}, headroom=1.0).amax == {"blocks.0.attn.proj": 3.25}


def test_ranges_are_wider_than_what_was_seen_and_say_by_how_much() -> None:
    dit = small_dit()
    with observe(dit) as observer:
        dit.blocks[0].attn.proj(torch.ones(1, 2, CONFIG.hidden))
    found = observer.calibration({"clips": 1})
    assert found == Calibration({"blocks.0.attn.proj": 4.0}, {"clips": 1, "headroom": 4.0})


def test_nothing_is_watched_afterwards() -> None:
    dit = small_dit()
    with observe(dit) as observer:
        pass
    stream_step(dit)
    assert observer.calibration({}).amax == {}
    assert not any(module._forward_pre_hooks for module in dit.modules())


def test_watching_changes_no_number() -> None:
    dit = small_dit()
    prompt, (noise, source) = make_prompt(dit, 0), latents(3, 0)
    plain = DiTStream(dit, streaming_schedule(2), 2, True).step(noise, source, prompt)
    with observe(dit):
        watched = DiTStream(dit, streaming_schedule(2), 2, True).step(noise, source, prompt)
    assert torch.equal(plain, watched)


def test_an_input_that_is_not_finite_names_its_layer() -> None:
    dit = small_dit()
    with observe(dit) as observer:
        dit.blocks[1].mlp.t_conv(torch.full((1, 3 * CONFIG.hidden), torch.nan))
    with pytest.raises(ConfigError, match=r"input of layer blocks\.1\.mlp\.t_conv is not finite"):
        observer.calibration({})


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    WHOLE.write(tmp_path / "c.json")
    assert Calibration.read(tmp_path / "c.json") == WHOLE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", r"c\.json is not JSON .*: run `sana-build calibrate`"),
        ("[1]", "does not hold the tables `amax` and `about`"),
        ('{"amax": {}}', "does not hold the tables"),
        ('{"amax": {"blocks.0.attn.q": "3"}, "about": {}}', r"c\.json has '3' for the layer blocks\.0\.attn\.q"),
        ('{"amax": {"blocks.0.attn.q": -1}, "about": {}}', "has -1 for the layer"),
        ('{"amax": {"blocks.0.attn.q": NaN}, "about": {}}', "has nan for the layer"),
        ('{"amax": {"blocks.0.attn.q": true}, "about": {}}', "has True for the layer"),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_entry(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        Calibration.read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read .*name an existing file"):
        Calibration.read(tmp_path / "c.json")
    with pytest.raises(ConfigError, match=r"cannot be written .*name another file"):
        WHOLE.write(tmp_path / "no" / "c.json")


def test_a_missing_layer_and_one_of_another_model_are_named(tmp_path: Path) -> None:
    short = Calibration(dict.fromkeys(PATHS[1:], 1.0))
    with pytest.raises(ConfigError, match=f"no entry for the layer {PATHS[0]}: run"):
        short.of(PATHS[0])
    with pytest.raises(ConfigError, match=f"no entry for the layer {PATHS[0]}: run"):
        short.check(CONFIG.depth)
    with pytest.raises(ConfigError, match=r"c has the entry 'blocks\.3\.attn\.k', which is no quantised layer"):
        WHOLE.check(CONFIG.depth - 1, "c")


def test_the_file_has_one_line_per_layer() -> None:
    text = WHOLE.dumps()
    assert json.loads(text)["amax"][PATHS[0]] == 1.5
    assert sum("blocks." in line for line in text.splitlines()) == len(PATHS)
