"""Section h of the golden data: the VAE against recorded outputs of the original implementation (spec 7)."""

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sana_export.compare import relative_error
from sana_export.configs import DOWN_STRIDES, VAEConfig
from sana_export.golden import Check
from sana_export.pixels import uint8_to_pixels
from sana_export.tensor_files import check_tensors
from sana_export.vae import VAE, State, VAEDecoder, causal_taps, decode_tiled
from sana_export.vae_keys import config_from_json, from_released, released_shapes
from sana_runtime.errors import BuildError

LIMIT = 5e-5
LONG_FRAMES = 8
"""What upstream's long mode encodes per call, after a first call with the clip's single left-over frame (spec 7.4)."""

Part = Callable[[Tensor, State | None], tuple[Tensor, State]]


INPUTS = {"video_u8", "latent", "stream_encode_sizes", "stream_split"}


class Arrays(dict[str, np.ndarray]):
    """Named arrays; the one that is missing is reported in a sentence."""

    def __missing__(self, name: str) -> np.ndarray:
        raise BuildError(f"the golden data of the VAE has no array {name}: fetch the golden data again")


@torch.inference_mode()
def section_h(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """One check per recorded array; pixels marked `sub2` are every second row and column.

    Raises BuildError for a file that is damaged or lacks an array, CheckpointError for weights of another shape.
    """
    golden = read_arrays(directory / "h_vae.npz")
    symmetric, causal = load_pair(directory, config)
    unused = dict.fromkeys(name for name in golden if name not in INPUTS)
    checks = (
        encoder_checks(symmetric, golden),
        decoder_checks(symmetric, causal, golden),
        stream_checks(causal.decoder, golden),
    )
    for check in chain.from_iterable(checks):
        unused.pop(check.name)
        yield check
    for name in unused:
        yield Check("h", f"{name} (not covered)", math.nan, 0.0)


def read_arrays(path: Path) -> Arrays:
    try:
        with np.load(path) as archive:
            return Arrays({name: archive[name] for name in archive.files})
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BuildError(f"golden file {path} cannot be read ({error}): fetch the golden data again") from error


def load_pair(directory: Path, config: Mapping[str, Any]) -> tuple[VAE, VAE]:
    """The recorded VAE with its own symmetric decoder, and with that decoder made causal."""
    path = directory / "h_vae_weights_bidirectional.npz"
    tensors = {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    sizes = config_from_json(str(directory / "config.json"), config["vae"])
    check_tensors(str(path), released_shapes(sizes), tensors)
    symmetric = load(replace(sizes, decoder_causal=False), tensors)
    return symmetric, load(replace(sizes, decoder_causal=True), causal_taps(tensors))


def load(config: VAEConfig, tensors: Mapping[str, Tensor]) -> VAE:
    vae = VAE(config).eval()
    vae.load_state_dict(from_released(tensors))
    return vae


def encoder_checks(vae: VAE, golden: Mapping[str, np.ndarray]) -> Iterator[Check]:
    video = uint8_to_pixels(torch.from_numpy(golden["video_u8"]).permute(0, 2, 3, 4, 1))
    frames = video.shape[2]
    sizes = {
        "latent_encode_full": [frames],
        "latent_encode_chunked": [1, *[LONG_FRAMES] * (frames // LONG_FRAMES)],
        "latent_encode_stream": golden["stream_encode_sizes"].tolist(),
    }
    for name, split in sizes.items():
        parts, _ = in_calls(vae.encoder, video, split)
        yield compare(name, torch.cat(parts, dim=2), golden[name])


def decoder_checks(symmetric: VAE, causal: VAE, golden: Mapping[str, np.ndarray]) -> Iterator[Check]:
    latent = torch.from_numpy(golden["latent"])
    video, _ = causal.decoder(latent)
    yield compare("decode_causal_whole", video, golden["decode_causal_whole"])
    video, _ = symmetric.decoder(latent)
    yield compare("decode_bidirectional_whole_sub2", sub2(video), golden["decode_bidirectional_whole_sub2"])
    video = decode_tiled(symmetric.decoder, latent)
    yield compare("decode_chunk_tile_sub2", sub2(video), golden["decode_chunk_tile_sub2"])


def stream_checks(decoder: VAEDecoder, golden: Mapping[str, np.ndarray]) -> Iterator[Check]:
    parts, state = in_calls(decoder, torch.from_numpy(golden["latent"]), golden["stream_split"].tolist())
    frames = [part.shape[2] for part in parts]
    yield compare("decode_causal_stream_sub2", sub2(torch.cat(parts, dim=2)), golden["decode_causal_stream_sub2"])
    yield exact("stream_frames", frames, golden["stream_frames"].tolist())
    entries = cache_entries(decoder, state)
    kinds = ["trim" if entry is None else "tensor" for entry in entries]
    shapes = ["" if entry is None else ";".join(map(str, entry.shape)) for entry in entries]
    yield exact("stream_cache_kinds", kinds, golden["stream_cache_kinds"].tolist())
    yield exact("stream_cache_shapes", shapes, golden["stream_cache_shapes"].tolist())
    for index, entry in enumerate(entries):
        if entry is not None:
            name = f"stream_cache_mean.{index}"
            yield compare(name, torch.stack([entry.mean(), entry.abs().mean()]), golden[name])


def cache_entries(decoder: VAEDecoder, state: State) -> list[Tensor | None]:
    """The carried tensors as upstream lists them: each temporal up layer has a flag in front, None here."""
    entries: list[Tensor | None] = []
    for name, tensor in state.items():
        block = name.split(".")
        if "upsamplers" in block and DOWN_STRIDES[decoder.config.upsample[int(block[1])]][0] == 2:
            entries.append(None)
        entries.append(tensor)
    return entries


def in_calls(part: Part, x: Tensor, sizes: list[int]) -> tuple[list[Tensor], State]:
    """Feed `x` (B, C, F, H, W) to a streaming part in calls of these sizes; the outputs, and the state at the end."""
    outputs, state = [], State()
    for piece in x.split(sizes, dim=2):
        output, state = part(piece, state)
        outputs.append(output)
    return outputs, state


def sub2(video: Tensor) -> Tensor:
    return video[..., ::2, ::2]


def compare(name: str, ours: Tensor, golden: np.ndarray) -> Check:
    return Check("h", name, relative_error(ours, torch.from_numpy(golden)), LIMIT)


def exact(name: str, ours: list[Any], golden: list[Any]) -> Check:
    """How many entries of a list differ; none may."""
    wrong = sum(a != b for a, b in zip(ours, golden, strict=False)) + abs(len(ours) - len(golden))
    return Check("h", name, float(wrong), 0.0)
