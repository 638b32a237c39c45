"""The training of tiny: what it may assume about the model, and that its shortcuts change nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from sana_export.caches import GDNCache, KVCache
from sana_export.dit import sinusoid
from sana_export.tiny_tokenizer import write_tiny_tokenizer
from sana_export.vae import VAEDecoder

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from train_tiny.collect import PACKAGES, VOCABULARY, vocabulary_text
from train_tiny.decoder_stage import Recorded, RecordedPool, border_weights, decoder_step
from train_tiny.dit_stage import Lesson, emphasis, new_editor
from train_tiny.evaluate import LOOP, SHIFT, borders, paired_border_ratio
from train_tiny.model import MODEL
from train_tiny.optim import Clock, Optimizer, Training, orthogonalised
from train_tiny.prompts import CLASSES, COLOURS, INVERTIBLE, PLACES, keys, phrases, reverse
from train_tiny.rollout import Editor, attention_biases, empty_memory, resident_sinusoid
from train_tiny.scenes import HASTE, Renderer, Scenes, draw_scenes, hurried, looped
from train_tiny.speed import Captured
from train_tiny.stream_stage import BORDER_WEIGHT, Teacher, balance
from train_tiny.streams import StillPool, World

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def editor() -> Editor:
    return new_editor(0)


@pytest.mark.parametrize("key", keys())
def test_no_held_out_instruction_is_trained(key: str) -> None:
    assert not set(phrases(key)) & set(phrases(key, held_out=True))


def test_what_is_edited_and_how_is_whole_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(write_tiny_tokenizer(tmp_path, VOCABULARY, vocabulary_text())))
    words = [*CLASSES, *COLOURS, *(word for place in PLACES for word in place.split())]
    pieces = {word: tokenizer.encode(f" {word}", add_special_tokens=False).tokens for word in words}
    assert {word: found for word, found in pieces.items() if len(found) > 1} == {}


def test_every_edit_has_a_way_back() -> None:
    assert {reverse(key) for key in keys() if not key.startswith("undo/")} <= set(keys())


def test_every_picture_is_in_the_list_of_licences() -> None:
    listed = (ROOT / "docs" / "tiny-data.md").read_text()
    names = [name.rpartition(".")[0] for _, files in PACKAGES.values() for name in files.split()]
    assert [name for name in names if name not in listed] == []


def test_instructions_read_in_training_are_those_read_when_served(editor: Editor) -> None:
    ids = torch.randint(1, 1000, (2, 140))
    mask = (torch.arange(140) < torch.tensor([[131], [140]])).long()
    with torch.no_grad():
        trained, served = editor.prompt(ids, mask), editor.dit.prompt(*editor.text(ids, mask))
    assert torch.equal(trained.bias, served.bias)
    real = served.bias[:, 0, 0] == 0
    for one, other in zip(trained.k, served.k, strict=True):
        assert torch.allclose(one.transpose(1, 2)[real], other.transpose(1, 2)[real], atol=1e-5)


def test_an_instruction_does_not_see_its_padding() -> None:
    bias = attention_biases(torch.tensor([[1, 1, 0]]))["full_attention"][0, 0]
    assert (bias == 0).tolist() == [[True, False, False], [True, True, False], [True, True, False]]


def test_times_are_embedded_as_in_the_model() -> None:
    times = torch.tensor([0.0, 743.0, 1000.0])
    assert torch.equal(resident_sinusoid(times), sinusoid(times))


def caches(value: float) -> list[GDNCache | KVCache]:
    full = torch.full((1, 1, 2, 4), value)
    return [GDNCache(full, full, full), KVCache(full, full, full)]


def test_a_memory_is_its_sink_and_its_newest_chunk() -> None:
    memory = empty_memory()
    assert memory.past() is None
    memory = memory.after(caches(0))
    assert memory.past() == memory.newest
    linear, softmax = memory.after(caches(1)).after(caches(2)).past() or []
    assert linear.tconv.unique().tolist() == [2]
    assert isinstance(softmax, KVCache)
    assert softmax.k[0, 0, :, 0].tolist() == [0, 0, 2, 2]


def test_a_forgotten_first_chunk_is_still_one_chunk() -> None:
    *_, softmax = empty_memory().after(caches(1)).map(torch.zeros_like).past() or []
    assert isinstance(softmax, KVCache)
    assert softmax.k.shape[2] == 2
    assert not softmax.k.any()


def changed_corner() -> tuple[torch.Tensor, torch.Tensor]:
    """Three streams: a corner of the first one changes, all but that corner of the second one, nothing in the third."""
    source = torch.zeros(3, 4, 3, 6, 6)
    target = source.clone()
    target[0, :, :, :2, :2] = 1
    target[1] = 1 - target[0]
    return source, target


def test_a_small_edit_counts_more_where_it_is() -> None:
    weight = emphasis(*changed_corner())
    assert torch.allclose(weight.mean(dim=(1, 2, 3, 4)), torch.ones(3))
    assert weight[0, 0, 0, 0, 0] > 3 * weight[0, 0, 0, 5, 5]
    assert weight[2].std() == 0


def test_in_the_stream_stage_a_small_object_counts_more_also_where_all_else_is_edited() -> None:
    weight = balance(*changed_corner())
    assert torch.allclose(weight.mean(dim=(1, 2, 3, 4)), torch.ones(3))
    assert (weight[:2, 0, 0, 0, 0] > 2 * weight[:2, 0, 0, 5, 5]).all()
    assert weight[2].std() == 0


class Adder:
    """An editor whose velocity is what it is given, noise and source together."""

    def prompt(self, *_: object) -> None:
        return None

    rope = prompt

    def evaluate(self, latent: torch.Tensor, source: torch.Tensor, *_: object) -> tuple[torch.Tensor, list[GDNCache]]:
        return latent + source, []

    def write(self, *_: object) -> list[GDNCache]:
        return []


def test_only_an_edit_that_hides_nothing_is_taught_the_way_back() -> None:
    source, edited = torch.zeros(2, 4, 3, 2, 2), torch.ones(2, 4, 3, 2, 2, requires_grad=True)
    lesson = Lesson(source, source, torch.zeros(2), (), (), torch.tensor([True, False]))
    loss, _ = Teacher(Adder(), torch.ones(4, 1, 1, 1), cycle=True).cycle_reverse(lesson, edited, empty_memory())
    loss.backward()
    assert edited.grad is not None
    assert edited.grad.flatten(1).any(1).tolist() == [True, False]
    assert {"keep", "negative"} <= set(INVERTIBLE) <= set(keys())


def test_a_jump_counts_most_from_chunk_to_chunk() -> None:
    teacher = Teacher(Adder(), torch.ones(1, 1, 1, 1), cycle=False)
    inside, between = (torch.arange(8).gt(place).float().view(1, 1, 8, 1, 1).split([5, 3], 2) for place in (2, 4))
    assert torch.isclose(teacher.jumps(list(between)), BORDER_WEIGHT * teacher.jumps(list(inside)))


class Blocks:
    """A VAE whose latent is every sixteenth pixel."""

    @staticmethod
    def encoder(video: torch.Tensor) -> tuple[torch.Tensor, None]:
        return video[..., ::16, ::16], None


def test_the_two_stills_of_a_scene_name_two_of_its_objects() -> None:
    world = World(torch.rand(4, 3, 288, 512), 3, MODEL.geometry)
    world.leaves = 0
    (stills,) = StillPool(world, Blocks(), 16, 8).draw(8)
    things = [key.split("/")[1] for key in stills.keys]
    assert all(one != other for one, other in zip(things[::2], things[1::2], strict=True))
    assert stills.source.shape == stills.target.shape == (8, 3, 1, 9, 16)
    one, other = stills.source[::2], stills.source[1::2]
    assert ((one - other).abs() < 0.02).float().mean() > 0.9
    assert not torch.allclose(stills.target[::2], stills.target[1::2], atol=0.1)


def test_a_step_without_a_gpu_is_the_step_itself() -> None:
    weight = torch.nn.Parameter(torch.ones(3))

    def step(inputs: dict[str, torch.Tensor], factor: int) -> torch.Tensor:
        loss = (factor * weight * inputs["x"]).sum()
        loss.backward()
        return loss.detach()

    assert Captured(step, [weight])({"x": torch.arange(3.0)}, 2) == 6
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 2, 4]


def test_the_border_ratio_does_not_see_motion() -> None:
    motion = torch.rand(400) ** 2
    jump = torch.where(borders(400), 1.5, 1.0)
    ratio = paired_border_ratio((motion * jump)[None], (motion[SHIFT:] * jump[: 400 - SHIFT])[None])
    assert ratio == pytest.approx(1.5)


def test_an_update_of_muon_has_even_singular_values() -> None:
    matrices = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.5


def scene_video(scenes: Scenes, frames: range) -> torch.Tensor:
    return Renderer(torch.rand(2, 3, 36, 64, generator=torch.Generator().manual_seed(0)), (36, 64))(scenes, frames)


def test_a_looped_scene_comes_round_and_a_plain_one_does_not() -> None:
    scenes = draw_scenes(np.random.default_rng(0), np.array([2, 3]), 2, 0, (36, 64))
    first, again = range(57, 61), range(57 + LOOP, 61 + LOOP)
    round_about = looped(scenes, LOOP)
    assert torch.allclose(scene_video(round_about, first), scene_video(round_about, again), atol=0.02)
    assert not torch.allclose(scene_video(scenes, first), scene_video(scenes, again), atol=0.1)


def test_a_hurried_scene_starts_where_the_plain_one_does_and_goes_further() -> None:
    scenes = draw_scenes(np.random.default_rng(0), np.full(8, 3), 2, 0, (36, 64))
    fast = hurried(np.random.default_rng(1), scenes)
    assert torch.equal(scene_video(scenes, range(1)), scene_video(fast, range(1)))
    pace = fast.path[:, 0, 0, 2] / scenes.path[:, 0, 0, 2]
    assert 1 < pace.max() <= HASTE
    assert (pace == 1).any()


def test_what_comes_before_the_first_step_is_no_part_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("train_tiny.optim.time.monotonic", lambda: now[0])
    clock = Clock(minutes=1)
    now[0] += 20
    clock.begin()
    assert clock.progress == 0
    now[0] += 20
    assert clock.progress == 0.5
    now[0] += 20
    assert clock.progress == 1


class Counted(Clock):
    """A clock that goes on by a quarter whenever it is looked at for another step."""

    looks = 0

    def begin(self) -> None:
        self.looks = 0

    @property
    def progress(self) -> float:
        return self.looks / 4

    @property
    def rate(self) -> float:
        self.looks += 1
        return 1.0


def test_a_training_ends_with_its_time_and_with_averaged_weights() -> None:
    layer = torch.nn.Linear(3, 2)
    start = [parameter.detach().clone() for parameter in layer.parameters()]
    training = Training([layer], Optimizer([layer], muon=0.1, adam=0.1, excluded=()), Counted(1), period=2)
    made = []
    for step in training:
        made.append(step)
        loss = layer(torch.ones(3)).square().sum()
        loss.backward()
        training.apply(loss=loss)
    assert made == [0, 1, 2, 3]
    live = [parameter.detach().clone() for parameter in layer.parameters()]
    assert [(point["step"], "loss" in point, "norm" in point) for point in training.finish()] == [
        (2, True, True),
        (4, True, True),
    ]
    for before, last, kept in zip(start, live, layer.parameters(), strict=True):
        assert not torch.equal(kept, last)
        assert (kept - last).norm() < (before - last).norm()


def test_no_time_means_no_step() -> None:
    clock = Clock(minutes=0)
    clock.begin()
    assert clock.progress == 1


class Straight(VAEDecoder):
    """A decoder of three channels that shows a latent as it is, all frames of it alike, times a weight."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, latent: torch.Tensor, state: object = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.weight * latent.repeat_interleave(2, 2), {}


def test_the_decoder_stage_weighs_a_change_of_the_error_beside_the_error() -> None:
    steady, jumping = torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 3, 4, 8, 8)
    jumping[:, :, ::2], jumping[:, :, 1::2], steady[:] = 0.1, -0.1, 0.1
    step = decoder_step(Straight())
    frames = torch.zeros(1, 3, 8, 8, 8)
    (still, none), (moving, much) = step(steady, frames), step(jumping, frames)
    assert still == pytest.approx(float(moving), rel=0.05)
    assert float(none) < 0.05 * float(much)


def test_a_change_counts_more_where_a_latent_begins() -> None:
    weight = border_weights(torch.zeros(1, 3, 33, 4, 4)).flatten()
    assert weight.mean() == pytest.approx(1)
    assert (weight > 1).nonzero().flatten().tolist() == [0, 8, 16, 24]


def test_a_window_of_a_recorded_stream_shows_what_its_latents_are_of() -> None:
    world = World(torch.zeros(1, 3, 8, 8), 0, MODEL.geometry)
    true = torch.rand(16, 3, 2, 9, 16)
    frames = (true * 255).byte().repeat_interleave(16, 3).repeat_interleave(16, 4)
    pool = RecordedPool(world, lambda: Recorded(true, true, frames), 16)
    latents, shown = pool.draw(4)
    assert latents.shape == (4, 3, 2, 6, 8)
    assert torch.allclose((shown[..., ::16, ::16] + 1) / 2, latents, atol=1 / 128)
