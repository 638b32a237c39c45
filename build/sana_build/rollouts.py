"""Streams of a model over real clips, without engines: what calibration observes and the policy search compares."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_export.checkpoint import Checkpoint
from sana_export.configs import ModelConfig, StreamConfig
from sana_export.dit import DiT
from sana_export.dtypes import compute_dtype
from sana_export.pixels import uint8_to_pixels
from sana_export.sampler import DiTStream
from sana_export.text import prompt_tokenizer
from sana_export.vae import VAE
from sana_runtime.errors import ConfigError
from sana_runtime.geometry import StreamGeometry
from sana_runtime.schedule import chunk_noise, streaming_schedule

Report = Callable[[str], object]
"""Told what is done next, in a few words."""


@dataclass(frozen=True)
class Machine:
    """Where PyTorch computes, and in which precision."""

    device: str
    dtype: torch.dtype

    @classmethod
    def best(cls) -> "Machine":
        """A CUDA device in BF16, as released; else this CPU in FP32, which few CPUs compute slower than BF16."""
        if torch.cuda.is_available():
            return cls("cuda", torch.bfloat16)
        return cls("cpu", torch.float32)


@dataclass(frozen=True)
class Scene:
    """B clips with their instructions, as the transformer reads them, to be edited side by side.

    `sources` holds the source latent (B, C, T, h, w) of every chunk; text (B, L, D) and mask (B, L); `seeds` has the
    seed of the noise of each of the B streams. All tensors are on the machine's device, in float32.
    """

    names: tuple[str, ...]
    sources: tuple[Tensor, ...]
    text: Tensor
    mask: Tensor
    seeds: tuple[int, ...]


def batch(scenes: Sequence[Scene]) -> Scene:
    """Scenes of as many chunks each, as one whose streams run side by side; each gives what it gives alone."""
    return Scene(
        tuple(name for scene in scenes for name in scene.names),
        tuple(torch.cat(parts) for parts in zip(*(scene.sources for scene in scenes), strict=True)),
        torch.cat([scene.text for scene in scenes]),
        torch.cat([scene.mask for scene in scenes]),
        tuple(seed for scene in scenes for seed in scene.seeds),
    )


def load_scenes(
    model: ModelConfig,
    checkpoint: Checkpoint,
    clips: Sequence[Path],
    prompts: Sequence[str],
    chunks: int,
    machine: Machine,
    report: Report = lambda _: None,
) -> list[Scene]:
    """Every clip with every prompt, encoded at the model's frame size, each once; scene number i has the seed i.

    A clip shorter than `chunks` is played forwards and backwards in turn. Raises ConfigError for a clip that cannot be
    read or has not even one chunk, before anything is loaded; CheckpointError as the loads do.
    """
    videos = [read_clip(clip, model.geometry, chunks) for clip in clips]
    report("encoding prompts")
    texts = encode_prompts(model, checkpoint, prompts, machine)
    vae = checkpoint.load_vae(model.vae, machine.dtype).to(machine.device)
    scenes: list[Scene] = []
    for clip, video in zip(clips, videos, strict=True):
        report(f"encoding {clip.name}")
        sources = tuple(encode_clip(vae, model.geometry, video, machine))
        for prompt, (text, mask) in zip(prompts, texts, strict=True):
            scenes.append(Scene((f"{clip.stem}: {prompt}",), sources, text, mask, (len(scenes),)))
    return scenes


@torch.inference_mode()
def rollout(dit: DiT, stream: StreamConfig, scene: Scene) -> Iterator[Tensor]:
    """The edited latent (B, C, T, h, w) of every chunk in turn, float32; its noise depends on the seeds alone."""
    dtype = compute_dtype(dit)
    with float32_latents(dit):
        editing = DiTStream(dit, streaming_schedule(stream.steps), stream.window, stream.sink)
        prompt = dit.prompt(scene.text.to(dtype), scene.mask.to(dtype))
        for index, source in enumerate(scene.sources):
            shape = (1, dit.config.latent_channels, *source.shape[2:])
            noise = np.concatenate([chunk_noise(seed, index, shape) for seed in scene.seeds])
            last = index == len(scene.sources) - 1
            yield editing.step(torch.from_numpy(noise).to(source.device), source, prompt, last)


@contextmanager
def float32_latents(dit: DiT) -> Iterator[None]:
    """Let `dit` take and return latents in float32 while it computes in its own precision."""
    dtype = compute_dtype(dit)
    hooks = (
        dit.register_forward_pre_hook(lambda _, inputs: (*(x.to(dtype) for x in inputs[:2]), *inputs[2:])),
        dit.register_forward_hook(lambda _, inputs, outputs: (outputs[0].float(), *outputs[1:])),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def read_clip(clip: Path, geometry: StreamGeometry, chunks: int) -> np.ndarray:
    """The frames of the first `chunks` chunks, uint8 (F, H, W, 3); a shorter clip turns back at its end.

    Raises ConfigError if the clip cannot be read or is shorter than the first chunk, SequenceError for more chunks
    than a stream can have.
    """
    # Here: a build on a GPU machine reads no clip, and need not have what decodes one.
    from sana_client.errors import VideoError
    from sana_client.video import VideoReader

    needed = geometry.first_frames + geometry.chunk(chunks - 1).index * geometry.steady_frames
    frames: list[np.ndarray] = []
    try:
        reader = VideoReader(str(clip))
        for frame in reader.frames(geometry.height, geometry.width):
            frames.append(frame.pixels)
            if len(frames) == needed:
                break
        reader.close()
    except VideoError as error:
        raise ConfigError(f"--clip {error}") from error
    if len(frames) < geometry.first_frames:
        raise ConfigError(f"--clip {clip} has {len(frames)} frames: this model needs at least {geometry.first_frames}")
    return np.stack(frames)[there_and_back(len(frames), needed)]


def there_and_back(length: int, count: int) -> np.ndarray:
    """`count` positions that run from 0 to length - 1 and back, again and again."""
    turn = length - 1
    return turn - np.abs(turn - np.arange(count) % (2 * turn))


@torch.no_grad()
def encode_clip(vae: VAE, geometry: StreamGeometry, video: np.ndarray, machine: Machine) -> Iterator[Tensor]:
    """Source latents (1, C, T, h, w) of the chunks of `video`, float32."""
    state = None
    for frames in np.split(video, range(geometry.first_frames, len(video), geometry.steady_frames)):
        pixels = uint8_to_pixels(torch.from_numpy(frames)[None].to(machine.device)).to(machine.dtype)
        source, state = vae.encoder(pixels, state)
        yield source.float()


@torch.no_grad()
def encode_prompts(
    model: ModelConfig, checkpoint: Checkpoint, prompts: Sequence[str], machine: Machine
) -> list[tuple[Tensor, Tensor]]:
    """Text (1, L, D) and mask (1, L) of each prompt, float32."""
    tokenizer = prompt_tokenizer(checkpoint.tokenizer_path(), model.dit.text_tokens)
    encoder = checkpoint.load_text(model, machine.dtype).to(machine.device)
    tokens = (tokenizer.encode(prompt) for prompt in prompts)
    return [encoder(*(torch.from_numpy(array).to(machine.device) for array in pair)) for pair in tokens]
