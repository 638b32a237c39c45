"""The VAE's GPU engines on a CPU: the exported network's numbers, chunk by chunk, for several streams at once."""

import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recorded import record
from torch import Tensor

from micro import MICRO
from sana_export.configs import TINY, ModelConfig
from sana_export.graph_modules import DecoderGraph, EncoderGraph
from sana_export.vae import VAE
from sana_export.vae_keys import fill_vae
from sana_gpu import vae_network
from sana_gpu.vae import STATE, Engines, FirstEngine, PartEngine, VAEEngine, load_vae, prepare_vae
from sana_runtime.errors import ConfigError, EngineError
from sana_runtime.state import IN, OUT
from sana_runtime.tensors import TensorSpec

PARTS = {"vae_encoder": EncoderGraph, "vae_decoder": DecoderGraph}
CHUNKS = 3
SMALL_TINY = replace(TINY, height=48, width=64)
EVERYWHERE = dict.fromkeys(PARTS, (8, 16, 32, 64))


def network(model: ModelConfig) -> VAE:
    vae = VAE(model.vae).eval()
    fill_vae(vae, 0)
    with torch.no_grad():
        for part in (vae.encoder, vae.decoder):
            part.latents_mean.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
            part.latents_std.uniform_(0.8, 1.2, generator=torch.Generator().manual_seed(1))
    return vae


def engines(part: str, vae: VAE, model: ModelConfig, **how: object) -> Engines:
    config = {"vae": asdict(model.vae), "geometry": asdict(model.geometry)}
    weights = getattr(vae, part.removeprefix("vae_")).state_dict()
    return load_vae(part, config, prepare_vae(part, config["vae"], weights, **how), "cpu")  # type: ignore[arg-type]


def given(engine: PartEngine, seed: int) -> Tensor:
    spec, generator = engine.inputs[0], torch.Generator().manual_seed(seed)
    if spec.dtype == "uint8":
        return torch.randint(0, 256, spec.shape, dtype=torch.uint8, generator=generator)
    return torch.randn(spec.shape, generator=generator)


def graphed(found: Engines) -> list[VAEEngine]:
    """Those that have a graph."""
    first, steady = found["first"], found["steady"]
    assert isinstance(first, FirstEngine)
    assert isinstance(steady, VAEEngine)
    return [first._start, steady]


def unpacked(engine: PartEngine, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With state by the names of its convolutions; what lies between them in its tensor means nothing."""
    pack = (engine._later if isinstance(engine, FirstEngine) else engine).pack  # type: ignore[attr-defined]
    whole = {name: x for name, x in tensors.items() if not name.startswith(STATE)}
    return whole | {name: x for packed in tensors.keys() - whole for name, x in pack.unpacked(tensors[packed]).items()}


def same(engine: PartEngine, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    first, second = unpacked(engine, one), unpacked(engine, other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def carried(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removesuffix(OUT) + IN: tensor for name, tensor in outputs.items() if name.endswith(OUT)}


def stream(found: Engines, seed: int = 0) -> list[dict[str, Tensor]]:
    """All outputs of the first chunks of a stream."""
    results: list[dict[str, Tensor]] = []
    for index in range(CHUNKS):
        engine = found["steady" if index else "first"]
        state = carried(results[-1]) if index else {}
        results.append(engine.run({engine.inputs[0].name: given(engine, 100 * seed + index), **state}))
    return results


@torch.inference_mode()
def wanted(part: str, vae: VAE, found: Engines) -> list[Tensor]:
    """The same chunks by the exported network."""
    net, state, made = getattr(vae, part.removeprefix("vae_")), [], []
    for index in range(CHUNKS):
        frames = given(found["steady" if index else "first"], index)
        output, *state = PARTS[part](net, net.state_names if index else ())(frames, *state)
        made.append(output)
    return made


def off(got: Tensor, reference: Tensor) -> float:
    """Relative, root mean square; 8-bit frames in steps of the least bit."""
    scale = 1.0 if got.dtype == torch.uint8 else float(reference.double().square().mean())
    return (float((got.double() - reference.double()).square().mean()) / scale) ** 0.5


MODELS = {"micro": MICRO, "tiny": SMALL_TINY}


@pytest.mark.parametrize("winograd", [{}, EVERYWHERE], ids=["direct", "winograd"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("part", PARTS)
def test_equals_the_exported_network(part: str, model: ModelConfig, winograd: dict[str, tuple[int, ...]]) -> None:
    vae = network(model)
    found = engines(part, vae, model, dtype=torch.float32, winograd=winograd)
    for outputs, reference in zip(stream(found), wanted(part, vae, found), strict=True):
        # A frame's value right between two steps may be cut either way: one in ten thousand is.
        limit = 0.01 if part == "vae_decoder" else 3e-6
        assert off(outputs[found["first"].outputs[0].name], reference) < limit


@pytest.mark.parametrize("winograd", [{}, EVERYWHERE], ids=["direct", "winograd"])
@pytest.mark.parametrize("part", PARTS)
def test_bf16_loses_no_more_than_the_network_in_bf16(part: str, winograd: dict[str, tuple[int, ...]]) -> None:
    vae = network(MICRO)
    found = engines(part, vae, MICRO, winograd=winograd)
    exact, got = wanted(part, vae, found), stream(found)
    plain = wanted(part, vae.to(torch.bfloat16), found)
    name = found["first"].outputs[0].name
    for ours, theirs, reference in zip(got, plain, exact, strict=True):
        assert off(ours[name], reference) < 1.2 * off(theirs, reference)


@pytest.mark.parametrize("part", PARTS)
def test_a_first_chunk_that_is_no_longer_than_a_later_one_is_computed_whole(part: str) -> None:
    vae = network(MICRO)
    config = {"vae": asdict(MICRO.vae), "geometry": asdict(MICRO.geometry) | {"first_latents": 3}}
    weights = prepare_vae(part, config["vae"], getattr(vae, part.removeprefix("vae_")).state_dict(), torch.float32)
    found = load_vae(part, config, weights, "cpu")
    assert found["first"].inputs[0].shape[2 if part == "vae_decoder" else 1] == (3 if part == "vae_decoder" else 17)
    for outputs, reference in zip(stream(found), wanted(part, vae, found), strict=True):
        assert off(outputs[found["first"].outputs[0].name], reference) < (0.01 if part == "vae_decoder" else 3e-6)


@pytest.mark.parametrize("part", PARTS)
def test_a_first_chunk_takes_no_more_room_than_a_later_one(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = engines(part, network(MICRO), MICRO)
    sizes: list[list[int]] = []

    def convolve(x: Tensor, weight: Tensor, pad: bool) -> object:
        sizes[-1].append(x.numel())
        return real(x, weight, pad)

    real = vae_network.convolve
    monkeypatch.setattr(vae_network, "convolve", convolve)
    outputs: dict[str, Tensor] = {}
    for index, engine in enumerate((found["first"], found["steady"])):
        sizes.append([])
        outputs = engine.run({engine.inputs[0].name: given(engine, index), **carried(outputs)})
    first, steady = (max(inputs) for inputs in sizes)
    assert first <= steady


def test_decoded_frames_are_marked_as_soon_as_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = engines("vae_decoder", network(MICRO), MICRO)
    first, steady = stream(found)[0], found["steady"]
    assert isinstance(steady, VAEEngine)
    feeds = {"latent": given(steady, 1), **carried(first)}
    whole, room = steady.run(feeds)["edited"], torch.empty(0)
    there: list[int] = []

    def record() -> None:
        there.append(int((room == whole)[0].flatten(1).all(1).sum()))

    def empty(spec: TensorSpec) -> Tensor:
        nonlocal room
        if spec.name != "edited":
            return real(spec)
        room = 255 - whole
        return room

    real = steady.memory.empty
    monkeypatch.setattr(steady.memory, "empty", empty)
    marked = [(place, SimpleNamespace(record=record)) for place, _ in steady._pieces]
    monkeypatch.setattr(steady, "_pieces", marked)
    steady.run(feeds)
    assert there == [place[1].stop for place, _ in marked]
    assert len(there) == vae_network.PIECES


def test_encoder_in_chunks_equals_whole_clip() -> None:
    vae = network(MICRO)
    found = engines("vae_encoder", vae, MICRO, dtype=torch.float32)
    clip = torch.cat([given(found["steady" if index else "first"], index) for index in range(CHUNKS)], dim=1)
    with torch.inference_mode():
        whole, *_ = EncoderGraph(vae.encoder)(clip)
    pieces = torch.cat([outputs["source"] for outputs in stream(found)], dim=2)
    assert off(pieces, whole) < 3e-6


@pytest.mark.parametrize("part", PARTS)
def test_tensors_are_what_the_engine_says(part: str) -> None:
    vae = network(MICRO)
    found = engines(part, vae, MICRO)
    names = getattr(vae, part.removeprefix("vae_")).state_names
    for engine, outputs in zip((found["first"], found["steady"]), stream(found), strict=False):
        assert [spec.name for spec in engine.outputs] == list(outputs)
        assert not any(spec.refusal(outputs[spec.name]) for spec in engine.outputs)
        assert list(unpacked(engine, outputs))[1:] == list(names)
    assert [spec.name for spec in found["steady"].inputs[1:]] == [STATE + IN]
    assert len(found["first"].inputs) == 1


@pytest.mark.parametrize("part", PARTS)
def test_streams_in_a_batch_are_as_if_alone(part: str) -> None:
    found = engines(part, network(MICRO), MICRO)
    alone = [stream(found, seed) for seed in range(2)]
    name = found["first"].inputs[0].name
    feeds = [{name: given(found["steady"], 100 * seed + 1), **carried(alone[seed][0])} for seed in range(2)]
    for together, one in zip(found["steady"].run_batch(feeds), (results[1] for results in alone), strict=True):
        assert same(found["steady"], together, one)


@pytest.mark.parametrize("part", PARTS)
def test_a_call_leaves_its_state_unchanged(part: str) -> None:
    found = engines(part, network(MICRO), MICRO)
    state = carried(stream(found)[0])
    before = {name: tensor.clone() for name, tensor in state.items()}
    feeds = {found["steady"].inputs[0].name: given(found["steady"], 5), **state}
    once, again = found["steady"].run(feeds), found["steady"].run(feeds)
    assert same(found["steady"], once, again)
    assert same(found["steady"], state, before)


@pytest.mark.parametrize("winograd", [{}, EVERYWHERE], ids=["direct", "winograd"])
@pytest.mark.parametrize("part", PARTS)
def test_a_recorded_chunk_serves_all_streams(
    part: str, winograd: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = network(MICRO)
    alone = [stream(engines(part, vae, MICRO, winograd=winograd), seed) for seed in range(3)]
    found = engines(part, vae, MICRO, winograd=winograd)
    recorder = record(graphed(found), monkeypatch)
    found["first"].warm()
    streams: list[list[dict[str, Tensor]]] = [[], [], []]
    for step in range(CHUNKS + 2):
        # Each stream begins when the one before is a chunk further.
        for seed, results in enumerate(streams):
            if (index := step - seed) in range(CHUNKS):
                engine = found["steady" if index else "first"]
                feeds = {engine.inputs[0].name: given(engine, 100 * seed + index)}
                results.append(engine.run(feeds | (carried(results[-1]) if index else {})))
    # Looked at in the end: no later chunk may have written to what an earlier one gave away.
    for results, expected in zip(streams, alone, strict=True):
        assert all(same(found["steady"], got, wanted) for got, wanted in zip(results, expected, strict=True))
    steady, start = recorder.pools
    assert start is steady


@pytest.mark.parametrize("part", PARTS)
def test_an_engine_keeps_nothing_of_a_stream(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = engines(part, network(MICRO), MICRO)
    record(graphed(found), monkeypatch)
    results = stream(found)
    held = [weakref.ref(tensor.untyped_storage()) for outputs in results for tensor in outputs.values()]
    del results
    assert not any(reference() is not None for reference in held)


def test_feeds_may_lie_anywhere() -> None:
    found = engines("vae_encoder", network(MICRO), MICRO)
    frames, state = given(found["steady"], 1), carried(stream(found)[0])
    shifted = np.concatenate([np.zeros(1, np.uint8), frames.numpy().ravel()])[1:].reshape(frames.shape)
    scattered = {name: tensor.expand(2, -1).T.contiguous().T[:1] for name, tensor in state.items()}
    wanted, got = (
        found["steady"].run(feeds) for feeds in ({"frames": frames, **state}, {"frames": shifted, **scattered})
    )
    assert not any(tensor.is_contiguous() for tensor in scattered.values())
    assert same(found["steady"], got, wanted)


def test_weights_beyond_the_range_of_float16_are_left_to_cudnn() -> None:
    weights = network(MICRO).encoder.state_dict()
    name = "down_blocks.0.resnets.0.conv1.weight"
    config = asdict(MICRO.vae)
    assert prepare_vae("vae_encoder", config, weights, winograd=EVERYWHERE)[name].shape == (9, 8, 3, 8)
    weights[name] = weights[name] * 1e4
    assert prepare_vae("vae_encoder", config, weights, winograd=EVERYWHERE)[name].shape == (8, 3, 3, 3, 8)


def test_takes_numpy_arrays() -> None:
    engine = engines("vae_encoder", network(MICRO), MICRO)["first"]
    frames = given(engine, 0)
    assert torch.equal(engine.run({"frames": frames.numpy()})["source"], engine.run({"frames": frames})["source"])


def test_a_full_gpu_names_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines("vae_encoder", network(MICRO), MICRO)["first"]

    def full(*_: object, **_named: object) -> None:
        raise torch.OutOfMemoryError("2 GiB wanted")

    monkeypatch.setattr("sana_gpu.vae_network.convolve", full)
    with pytest.raises(EngineError, match=r"VAE's source of 1 streams.*--streams.*--policy.*2 GiB"):
        engine.run({"frames": given(engine, 0)})


def test_refusals() -> None:
    vae = network(MICRO)
    found = engines("vae_encoder", vae, MICRO)
    frames = given(found["first"], 0)
    with pytest.raises(EngineError, match="the engine takes"):
        found["first"].run({"frames": frames[:, :32]})
    with pytest.raises(EngineError, match=r"missing \['state.in'\]"):
        found["steady"].run({"frames": frames[:, :24]})
    with pytest.raises(EngineError, match="0 streams"):
        found["first"].run_batch([])
    config = asdict(MICRO.vae)
    with pytest.raises(ConfigError, match="part of the VAE 'denoiser'"):
        prepare_vae("denoiser", config, vae.encoder.state_dict())
    with pytest.raises(ConfigError, match="only a causal decoder"):
        prepare_vae("vae_decoder", {**config, "decoder_causal": False}, vae.encoder.state_dict())
