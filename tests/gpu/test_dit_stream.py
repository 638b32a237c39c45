"""Whole streams through the denoiser's engines, on the readable references of their kernels."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from dit_cases import Stream, engine_config, engines, model, together
from recorded import record
from torch import Tensor

from sana_export.configs import StreamConfig
from sana_export.dit import DiT
from sana_export.sampler import DiTStream
from sana_gpu.denoiser import ChunkEngine, batches, load_denoiser, sizes
from sana_gpu.denoiser_prompt import PADDING_BIAS, keys_used
from sana_gpu.dit import prepare_dit
from sana_quant.calibration import Calibration, observe
from sana_quant.fake import fake_quantised
from sana_quant.groups import layers
from sana_quant.policy import load_policy
from sana_runtime.errors import ConfigError, EngineError, SequenceError
from sana_runtime.schedule import streaming_schedule
from sana_runtime.state import OUT
from small_dit import CONFIG, assert_near, latents, small_dit, text_and_mask

LENGTHS = (5, 3, 3, 3, 3, 3)


@pytest.fixture(scope="module")
def dit() -> DiT:
    return small_dit()


def chunks(seed: int) -> list[tuple[Tensor, Tensor]]:
    return [latents(length, 100 * seed + i) for i, length in enumerate(LENGTHS)]


def reference(dit: DiT, seed: int, window: int = 2) -> list[Tensor]:
    stream = DiTStream(dit, streaming_schedule(4), window, sink=True)
    text, mask = text_and_mask(seed)
    prompt = dit.prompt(text.to(next(dit.parameters()).dtype), mask)
    return [stream.step(*chunk, prompt) for chunk in chunks(seed)]


def off(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Root mean square of the difference over that of the wanted values."""
    got, exact = (torch.cat([x.flatten() for x in tensors]) for tensors in (found, wanted))
    return float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def to_bf16(dit: DiT) -> DiT:
    """Weights and activations in bfloat16; latents between the steps in float32, like the engine's."""
    copy = deepcopy(dit).bfloat16()
    copy.register_forward_pre_hook(lambda _, inputs: (*(x.bfloat16() for x in inputs[:2]), *inputs[2:]))
    copy.register_forward_hook(lambda _module, _inputs, output: (output[0].float(), output[1]))
    return copy


@pytest.mark.parametrize("window", [2, 3])
def test_a_stream_equals_the_reference(dit: DiT, window: int) -> None:
    stream = Stream(engines(dit, model(window)), *text_and_mask(1), window)
    for chunk, wanted in zip(chunks(1), reference(dit, 1, window), strict=True):
        assert_near(stream.step(*chunk), wanted)


def test_attention_to_shares_of_the_keys_is_attention_to_all(dit: DiT) -> None:
    stream = Stream(engines(dit, model(), attention="shared"), *text_and_mask(1))
    for chunk, wanted in zip(chunks(1), reference(dit, 1), strict=True):
        assert_near(stream.step(*chunk), wanted)


def test_streams_of_different_ages_in_a_batch_equal_each_alone(dit: DiT) -> None:
    loaded = engines(dit, model())
    seeds, ages = (1, 2, 3), (1, 2, 4)
    streams = [Stream(loaded, *text_and_mask(seed)) for seed in seeds]
    for stream, seed, age in zip(streams, seeds, ages, strict=True):
        for chunk in chunks(seed)[:age]:
            stream.step(*chunk)
    # The second step puts the first stream, whose window has filled by then, into one graph with the others.
    for step in range(2):
        following = [chunks(seed)[age + step] for seed, age in zip(seeds, ages, strict=True)]
        found = together(streams, following)
        for latent, seed, age in zip(found, seeds, ages, strict=True):
            assert_near(latent, reference(dit, seed)[age + step])


def test_more_streams_than_a_batch_holds(dit: DiT) -> None:
    loaded = engines(dit, model(), streams=2)
    streams = [Stream(loaded, *text_and_mask(seed)) for seed in (1, 2, 3)]
    feeds = [stream.feeds(*chunks(seed)[0]) for stream, seed in zip(streams, (1, 2, 3), strict=True)]
    for outputs, seed in zip(loaded["first"].run_batch(feeds), (1, 2, 3), strict=True):
        assert_near(outputs["latent"], reference(dit, seed)[0])


def test_another_session_does_not_leak_in(dit: DiT) -> None:
    loaded = engines(dit, model())
    mine, other = (Stream(loaded, *text_and_mask(seed)) for seed in (1, 2))
    for index, wanted in enumerate(reference(dit, 1)):
        assert_near(mine.step(*chunks(1)[index]), wanted)
        other.step(*chunks(2)[index])


def test_recorded_chunks_serve_all_streams(dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engines(dit, model())
    record((loaded["first"], loaded["steady"]), monkeypatch)
    seeds, kept = (1, 2), []
    streams = [Stream(loaded, *text_and_mask(seed)) for seed in seeds]
    wanted = [reference(dit, seed) for seed in seeds]
    for step in range(6):
        # The second begins between two chunks of the first, which has its window in the room of both by then.
        for stream, seed, delay in zip(streams, seeds, (0, 2), strict=True):
            if (index := step - delay) in range(4):
                latent = stream.step(*chunks(seed)[index])
                kept += [(latent, latent.clone()), *((x, x.clone()) for x in stream.state.values())]
                assert_near(latent, wanted[seed - 1][index])
    assert all(torch.equal(now, then) for now, then in kept)


def test_a_call_leaves_its_state_unchanged(dit: DiT) -> None:
    stream = Stream(engines(dit, model()), *text_and_mask(1))
    stream.step(*chunks(1)[0])
    feeds = stream.feeds(*chunks(1)[1])
    engine = stream.engines["steady"]
    assert isinstance(engine, ChunkEngine)
    given = {name: tensor.clone() for name, tensor in feeds.items() if isinstance(tensor, Tensor)}
    once, again = (unpacked(engine, engine.run(feeds)) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert all(torch.equal(feeds[name], tensor) for name, tensor in given.items())


def unpacked(engine: ChunkEngine, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """With what is carried tensor by tensor: what lies between two of them means nothing."""
    packs = {name: engine._layout.packs[name.removesuffix(OUT)] for name in outputs if name.endswith(OUT)}
    parts = {(name, key): x for name, pack in packs.items() for key, x in pack.unpacked(outputs[name]).items()}
    return {"latent": outputs["latent"]} | {f"{name}.{key}": x for (name, key), x in parts.items()}


def test_what_an_engine_returns_is_what_it_says(dit: DiT) -> None:
    stream = Stream(engines(dit, model()), *text_and_mask(1))
    for chunk in chunks(1)[:2]:
        engine = stream.engines[stream.variant]
        outputs = engine.run(stream.feeds(*chunk))
        assert {name: tuple(x.shape) for name, x in outputs.items()} == {s.name: s.shape for s in engine.outputs}
        assert all(str(outputs[spec.name].dtype) == f"torch.{spec.dtype}" for spec in engine.outputs)
        stream.take(outputs)


def test_fp8_is_as_near_as_the_fake_quantised_model(dit: DiT) -> None:
    with observe(dit) as observer:
        exact = reference(dit, 1)
    calibration = Calibration(observer.calibration({}).amax)
    fake = reference(fake_quantised(dit, load_policy("fp8", CONFIG.depth), calibration), 1)
    precision = {layer.path: "fp8" for layer in layers(CONFIG.depth)}
    stream = Stream(engines(dit, model(), precision, calibration.amax), *text_and_mask(1))
    found = [stream.step(*chunk) for chunk in chunks(1)]
    assert 0.5 * off(fake, exact) < off(found, exact) < 1.3 * off(fake, exact)


def test_bf16_is_as_near_as_the_definition_in_bf16(dit: DiT) -> None:
    exact = reference(dit, 1)
    plain = reference(to_bf16(dit), 1)
    config = engine_config(model(), 1)
    weights = prepare_dit(config["dit"], dit.state_dict(), {}, {})
    stream = Stream(load_denoiser(config, weights, "cpu"), *text_and_mask(1))
    assert off([stream.step(*chunk) for chunk in chunks(1)], exact) < 1.2 * off(plain, exact)


def test_keys_behind_the_last_of_a_prompt_are_not_counted() -> None:
    masks = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert keys_used((1.0 - masks) * PADDING_BIAS).tolist() == [2, 3, 4, 4]


def test_the_end_of_the_rotary_table_is_refused(dit: DiT) -> None:
    stream = Stream(engines(dit, model()), *text_and_mask(1))
    stream.step(*chunks(1)[0])
    stream.start = CONFIG.max_frames - 2
    with pytest.raises(SequenceError, match="latent frames 62 to 64 are beyond the rotary table of 64 frames"):
        stream.step(*chunks(1)[1])


def test_a_misshapen_feed_is_refused(dit: DiT) -> None:
    stream = Stream(engines(dit, model()), *text_and_mask(1))
    with pytest.raises(EngineError, match=r"tensor noise has shape \[1, 6, 3, 2, 3\], the engine takes"):
        stream.engines["first"].run(stream.feeds(*chunks(1)[1]))


@pytest.mark.parametrize("stream", [StreamConfig(window=1), StreamConfig(sink=False)], ids=("window", "sink"))
def test_a_window_without_a_sink_is_refused(dit: DiT, stream: StreamConfig) -> None:
    config = engine_config(replace(model(), stream=stream), 1)
    with pytest.raises(ConfigError, match="window of at least 2 chunks with the first one as its sink"):
        load_denoiser(config, prepare_dit(config["dit"], dit.state_dict(), {}, {}), "cpu")


def test_batches_are_powers_of_two_that_fit() -> None:
    assert sizes(8) == [8, 4, 2, 1]
    assert sizes(3) == [2, 1]
    assert [list(batch) for batch in batches(range(7), 4)] == [[0, 1, 2, 3], [4, 5], [6]]


class Recording:
    """Graphs that are run once when they are first asked for, as a capture does, and say for what."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, int]] = []

    def get(self, key: tuple[int, int], function: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        if key not in self.keys:
            self.keys.append(key)
            function()
        return function


def test_after_warming_up_no_chunk_waits_for_a_graph(dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    cold, warm = (Stream(engines(dit, model()), *text_and_mask(1)) for _ in range(2))
    expected = {"first": {(4, 0), (2, 0), (1, 0)}, "steady": {(n, recent) for n in (4, 2, 1) for recent in (0, 1)}}
    graphs = {}
    for variant in expected:
        graphs[variant] = Recording()
        monkeypatch.setattr(warm.engines[variant], "_graphs", graphs[variant])
        warm.engines[variant].warm()
    for chunk in chunks(1)[:4]:
        assert torch.equal(cold.step(*chunk), warm.step(*chunk))
    assert {variant: set(found.keys) for variant, found in graphs.items()} == expected


def test_a_gpu_that_is_too_small_is_told_with_what_to_do(dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engines(dit, model())

    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loaded["first"], "_compute", too_much)
    with pytest.raises(EngineError, match=r"no memory left for the chunks of 1 streams: .*--streams.*--policy"):
        Stream(loaded, *text_and_mask(1)).step(*chunks(1)[0])
