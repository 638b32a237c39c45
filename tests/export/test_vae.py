"""The VAE as a streaming function: chunked equals whole, sessions stay apart, bad calls are refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from micro import MICRO
from sana_export.configs import SANA_STREAMING, VAEConfig
from sana_export.vae import VAE, causal_taps, decode_tiled
from sana_export.vae_keys import (
    config_from_json,
    config_to_json,
    fill_vae,
    from_released,
    released_shapes,
    to_released,
)
from sana_export.vae_layers import TemporalConv, patchify, shuffle, unpatchify, unshuffle
from sana_runtime.errors import CheckpointError, ConfigError, RequestError

# Tensors this small are slower, by far, when busy cores have to wait for one another.
torch.set_num_threads(1)

LIMIT = 2e-5


def relative(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return float((ours - expected).abs().max() / expected.abs().max())


def filled(config: VAEConfig, seed: int = 0) -> VAE:
    vae = VAE(config).eval()
    fill_vae(vae, seed)
    return vae


def in_calls(part, x: Tensor, sizes: list[int]) -> Tensor:  # type: ignore[no-untyped-def]
    state, outputs = None, []
    for piece in x.split(sizes, dim=2):
        output, state = part(piece, state)
        outputs.append(output)
    return torch.cat(outputs, dim=2)


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae() -> VAE:
    return filled(MICRO.vae)


@pytest.mark.parametrize("sizes", [[1, 8, 8, 8, 8], [33], [9, 24], [17, 16], [1, 32]])
def test_encoder_in_calls_equals_whole_clip(vae: VAE, sizes: list[int]) -> None:
    video = torch.rand(2, 3, 33, 32, 48) * 2 - 1
    whole, _ = vae.encoder(video)
    assert whole.shape == (2, 8, 5, 2, 3)
    assert relative(in_calls(vae.encoder, video, sizes), whole) < LIMIT


@pytest.mark.parametrize("sizes", [[1] * 6, [5, 1], [3, 3], [2, 1, 3]])
def test_decoder_in_calls_equals_whole_clip(vae: VAE, sizes: list[int]) -> None:
    latent = torch.randn(2, 8, 6, 2, 3)
    whole, _ = vae.decoder(latent)
    assert whole.shape == (2, 3, 41, 32, 48)
    assert relative(in_calls(vae.decoder, latent, sizes), whole) < LIMIT


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_form_for_engines_is_the_same_network(part: str) -> None:
    vae = filled(MICRO.vae)
    network = getattr(vae, part)
    channels, frames = (3, 9) if part == "encoder" else (MICRO.vae.latent_channels, 2)
    x = torch.randn(1, channels, frames, 32, 48, generator=torch.Generator().manual_seed(0))
    stacked, _ = network(x, None)
    for module in network.modules():
        if isinstance(module, TemporalConv):
            module.stacked = False
    volume, _ = network(x, None)
    assert relative(volume, stacked) < LIMIT


def test_frames_per_call(vae: VAE) -> None:
    video, state = vae.decoder(torch.randn(1, 8, 5, 2, 3))
    assert video.shape[2] == 33
    video, _ = vae.decoder(torch.randn(1, 8, 3, 2, 3), state)
    assert video.shape[2] == 24


def test_interleaved_sessions_do_not_mix(vae: VAE) -> None:
    first, second = torch.rand(2, 1, 3, 17, 32, 48) * 2 - 1
    alone = in_calls(vae.encoder, first, [9, 8])
    a, a_state = vae.encoder(first[:, :, :9])
    _, b_state = vae.encoder(second[:, :, :9])
    vae.encoder(second[:, :, 9:], b_state)
    rest, _ = vae.encoder(first[:, :, 9:], a_state)
    assert torch.equal(torch.cat([a, rest], dim=2), alone)


def test_batch_members_do_not_mix(vae: VAE) -> None:
    latent = torch.randn(2, 8, 3, 2, 3)
    both, _ = vae.decoder(latent)
    changed = latent.clone()
    changed[1] += 1
    other, _ = vae.decoder(changed)
    assert torch.equal(both[0], other[0])
    assert not torch.equal(both[1], other[1])


def test_a_call_leaves_its_state_unchanged(vae: VAE) -> None:
    _, state = vae.decoder(torch.randn(1, 8, 5, 2, 3))
    before = {name: tensor.clone() for name, tensor in state.items()}
    latent = torch.randn(1, 8, 3, 2, 3)
    once, _ = vae.decoder(latent, state)
    again, _ = vae.decoder(latent, state)
    assert torch.equal(once, again)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_past_never_depends_on_future(vae: VAE) -> None:
    latent = torch.randn(1, 8, 6, 2, 3)
    changed = latent.clone()
    changed[:, :, 4:] += 1
    one, _ = vae.decoder(latent)
    other, _ = vae.decoder(changed)
    assert relative(other[:, :, :25], one[:, :, :25]) < LIMIT
    assert relative(other[:, :, 25:], one[:, :, 25:]) > 0.01


def test_state_is_named_by_released_path_in_execution_order(vae: VAE) -> None:
    _, state = vae.decoder(torch.randn(1, 8, 1, 2, 3))
    names = list(state)
    assert names == list(vae.decoder.state_names)
    assert names[:3] == ["conv_in", "mid_block.resnets.0.conv1", "mid_block.resnets.0.conv2"]
    assert names[3] == "up_blocks.0.upsamplers.0.conv"
    assert names[-1] == "conv_out"
    assert {f"decoder.{name}.conv.weight" for name in names} < released_shapes(MICRO.vae).keys()
    assert all(tensor.shape[2] == 2 for tensor in state.values())


def test_wrong_frame_counts_are_refused(vae: VAE) -> None:
    with pytest.raises(RequestError, match="1 \\+ 8a frames"):
        vae.encoder(torch.rand(1, 3, 8, 32, 48))
    _, state = vae.encoder(torch.rand(1, 3, 9, 32, 48))
    for frames in (0, 9, 12):
        with pytest.raises(RequestError, match="8b frames"):
            vae.encoder(torch.rand(1, 3, frames, 32, 48), state)
    with pytest.raises(RequestError, match="no latent"):
        vae.decoder(torch.rand(1, 8, 0, 2, 3))


def test_state_of_another_network_is_refused(vae: VAE) -> None:
    _, state = vae.encoder(torch.rand(1, 3, 9, 32, 48))
    with pytest.raises(ConfigError, match="another network"):
        vae.decoder(torch.rand(1, 8, 3, 2, 3), state)


def test_symmetric_decoder_looks_ahead_and_carries_nothing() -> None:
    decoder = filled(replace(MICRO.vae, decoder_causal=False)).decoder
    latent = torch.randn(1, 8, 4, 2, 3)
    one, state = decoder(latent)
    assert one.shape[2] == 25
    assert not state
    changed = latent.clone()
    changed[:, :, 3] += 1
    other, _ = decoder(changed)
    assert not torch.equal(one[:, :, :17], other[:, :, :17])


def test_causal_taps_shift_every_decoder_kernel() -> None:
    released = to_released(filled(replace(MICRO.vae, decoder_causal=False)))
    shifted = causal_taps(released)
    key = "decoder.up_blocks.1.upsamplers.0.conv.conv.weight"
    assert torch.equal(shifted[key][:, :, 0], torch.zeros_like(shifted[key][:, :, 0]))
    assert torch.equal(shifted[key][:, :, 1], released[key][:, :, 0])
    assert torch.equal(shifted[key][:, :, 2], released[key][:, :, 1] + released[key][:, :, 2])
    untouched = [name for name in released if name.startswith("encoder.") or not name.endswith("conv.weight")]
    assert all(shifted[name] is released[name] for name in untouched)


def test_tiled_decode_covers_the_clip_and_starts_like_its_first_tile() -> None:
    decoder = filled(replace(MICRO.vae, decoder_causal=False)).decoder
    latent = torch.randn(1, 8, 6, 2, 3)
    video = decode_tiled(decoder, latent)
    first, _ = decoder(latent[:, :, :4])
    assert video.shape[2] == 41
    assert torch.equal(video[:, :, :9], first[:, :, :9])
    single, _ = decoder(latent[:, :, :1])
    assert torch.equal(decode_tiled(decoder, latent[:, :, :1]), single)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_shuffles_undo_each_other(stride: tuple[int, int, int]) -> None:
    x = torch.randn(2, 4, 3, 6, 8)
    assert torch.equal(shuffle(unshuffle(x, stride), stride), x)
    assert torch.equal(unpatchify(patchify(x, 2), 2), x)


def test_patch_channels_count_colour_column_row() -> None:
    video = torch.zeros(1, 1, 3, 8, 8)
    video[0, 0, 2, 4 + 1, 3] = 1
    assert patchify(video, 4)[0, 0, :, 1, 0].nonzero().item() == (2 * 4 + 3) * 4 + 1


def test_released_tensors_survive_a_round_trip(vae: VAE) -> None:
    released = to_released(vae)
    assert {key: tuple(value.shape) for key, value in released.items()} == released_shapes(MICRO.vae)
    again = VAE(MICRO.vae)
    again.load_state_dict(from_released(released))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in vae.state_dict().items())


def test_production_size_is_the_released_one() -> None:
    shapes = released_shapes(SANA_STREAMING.vae)
    sizes = {key: torch.Size(shape).numel() for key, shape in shapes.items()}
    assert len(shapes) == 184
    assert sum(size for key, size in sizes.items() if key.startswith("encoder.")) == 694_098_881
    assert sum(size for key, size in sizes.items() if key.startswith("decoder.")) == 528_380_720
    with torch.device("meta"):
        assert len(VAE(SANA_STREAMING.vae).decoder.state_names) == 45


@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_are_tame(seed: int) -> None:
    vae = filled(MICRO.vae, seed)
    ramp = torch.linspace(-1, 1, 48).expand(1, 3, 33, 32, 48) * torch.linspace(0.5, 1, 33)[:, None, None]
    latent, _ = vae.encoder(ramp)
    assert 0.3 < latent.square().mean().sqrt() < 3
    state = None
    for _ in range(12):
        video, state = vae.decoder(torch.randn(1, 8, 3, 2, 3), state)
    assert 0.1 < video.std() < 2


def test_random_weights_depend_on_the_seed() -> None:
    first, again, other = (to_released(filled(MICRO.vae, seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_config_json_round_trip_and_refusal() -> None:
    raw = config_to_json(MICRO.vae)
    assert config_from_json("config.json", raw) == MICRO.vae
    with pytest.raises(CheckpointError, match="timestep_conditioning = True"):
        config_from_json("config.json", {**raw, "timestep_conditioning": True})
    with pytest.raises(CheckpointError, match="upsample_factor"):
        config_from_json("config.json", {**raw, "upsample_factor": [2, 2, 1]})


def test_config_json_is_read_as_diffusers_reads_it() -> None:
    from diffusers import AutoencoderKLLTX2Video

    with torch.device("meta"):
        theirs = AutoencoderKLLTX2Video.from_config(config_to_json(MICRO.vae))
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert shapes == released_shapes(MICRO.vae)


def test_outputs_equal_diffusers(vae: VAE) -> None:
    from diffusers import AutoencoderKLLTX2Video

    theirs = AutoencoderKLLTX2Video.from_config(config_to_json(MICRO.vae)).eval()
    theirs.load_state_dict(to_released(vae))
    video, latent = torch.rand(1, 3, 17, 32, 48) * 2 - 1, torch.randn(1, 8, 3, 2, 3)
    mean, std = theirs.latents_mean.view(-1, 1, 1, 1), theirs.latents_std.view(-1, 1, 1, 1)
    assert relative(vae.encoder(video)[0], (theirs.encode(video).latent_dist.mode() - mean) / std) < LIMIT
    assert relative(vae.decoder(latent)[0], theirs.decode(latent * std + mean).sample) < LIMIT
