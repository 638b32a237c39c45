"""What a policy search measures with: streams of the unquantised model, and how far those of a policy are from them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_build.rollouts import Machine, Scene, batch, encode_clip, encode_prompts, read_clip, rollout
from sana_export.checkpoint import Checkpoint
from sana_export.configs import ModelConfig
from sana_export.pixels import pixels_to_uint8, uint8_to_pixels
from sana_export.vae import VAE
from sana_quant.calibration import Calibration, observe
from sana_quant.fake import fake_quantised, set_policy
from sana_quant.policy import Policy
from sana_quant.scores import perceptual, relative_rmse
from sana_quant.search.edits import uniform
from sana_quant.search.study import Score


@dataclass(frozen=True)
class Setting:
    """What streams are compared: prompt number i edits clip number i, both starting over when they run out.

    A clip is cut into windows of `chunks` chunks; `windows` are the ones to use in turn. Stream i has noise `seed` + i.
    Without `calibration` the largest inputs are those of the reference streams themselves.
    """

    model: ModelConfig
    checkpoint: Checkpoint
    clips: tuple[Path, ...]
    prompts: tuple[str, ...]
    chunks: int
    windows: range
    seed: int
    calibration: Calibration | None = None

    def key(self) -> str:
        """Changes when the streams may have changed, except with the machine."""
        clips = [hashlib.sha256(clip.read_bytes()).hexdigest() for clip in self.clips]
        amax = dict(self.calibration.amax) if self.calibration else None
        content = [asdict(self.model), self.checkpoint.identity(), clips, self.prompts, self.chunks]
        content += [list(self.windows), self.seed, amax]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def streams(self) -> list[tuple[str, int, int]]:
        """Prompt, number of the clip and window of every stream."""
        clips, windows = len(self.clips), len(self.windows)
        count = max(len(self.prompts), clips)
        return [
            (self.prompts[i % len(self.prompts)], i % clips, self.windows[i // clips % windows]) for i in range(count)
        ]

    @property
    def frames(self) -> int:
        """Frames of one window."""
        geometry = self.model.geometry
        return geometry.first_frames + (self.chunks - 1) * geometry.steady_frames

    def describe(self, stream: int) -> str:
        prompt, clip, window = self.streams()[stream]
        return f"{self.clips[clip].stem}, from frame {window * self.frames}: {prompt}"


@dataclass(frozen=True)
class Finding:
    """The score of a policy, and the last frame of each of its streams, uint8 (B, H, W, 3)."""

    score: Score
    stills: np.ndarray


class Judge:
    """Holds the reference streams of a setting on one device, and measures one policy after the other."""

    def __init__(self, setting: Setting, machine: Machine) -> None:
        self.setting, self.machine = setting, machine
        model, checkpoint = setting.model, setting.checkpoint
        self._vae = checkpoint.load_vae(model.vae, machine.dtype).to(machine.device)
        self._scene = load_scene(setting, self._vae, machine)
        dit = checkpoint.load_dit(model.dit, machine.dtype).to(machine.device)
        with observe(dit) as observer:
            self._reference = list(rollout(dit, model.stream, self._scene))
        self.calibration = setting.calibration or observer.calibration(about(setting, machine))
        self._dit = fake_quantised(dit, uniform("bf16", model.dit.depth, "bf16"), self.calibration)

    def score(self, policy: Policy) -> Score:
        """RelRMSE of every stream under `policy`."""
        return Score(self._errors(self._latents(policy)), ())

    @torch.inference_mode()
    def inspect(self, policy: Policy | None) -> Finding:
        """The score with the perceptual distance of the decoded streams; None stands for the reference itself."""
        latents = self._reference if policy is None else self._latents(policy)
        distance = perceptual().load(self.machine.device)
        sums, count, stills = np.zeros(len(self._scene.seeds)), 0, np.empty(0)
        for frames, wanted in zip(self._frames(latents), self._reference_frames, strict=True):
            pairs = zip(uint8_to_pixels(frames), uint8_to_pixels(wanted), strict=True)
            sums += [float(distance(ours.transpose(0, 1), theirs.transpose(0, 1)).sum()) for ours, theirs in pairs]
            count += frames.shape[1]
            stills = frames[:, -1].cpu().numpy()
        return Finding(Score(self._errors(latents), tuple((sums / count).tolist())), stills)

    def sources(self) -> np.ndarray:
        """The last source frame of each stream, uint8 (B, H, W, 3)."""
        windows = [read_window(self.setting, clip, window)[-1] for _, clip, window in self.setting.streams()]
        return np.stack(windows)

    def _latents(self, policy: Policy) -> list[Tensor]:
        set_policy(self._dit, policy, self.calibration)
        return list(rollout(self._dit, self.setting.model.stream, self._scene))

    def _errors(self, latents: Sequence[Tensor]) -> tuple[float, ...]:
        return tuple(relative_rmse(torch.cat(list(latents), 2), torch.cat(self._reference, 2)).tolist())

    @cached_property
    def _reference_frames(self) -> list[Tensor]:
        return list(self._frames(self._reference))

    @torch.inference_mode()
    def _frames(self, latents: Sequence[Tensor]) -> Iterator[Tensor]:
        """Decoded chunks, uint8 (B, F, H, W, 3)."""
        state = None
        for latent in latents:
            video, state = self._vae.decoder(latent.to(self.machine.dtype), state)
            yield pixels_to_uint8(video.float())


def load_scene(setting: Setting, vae: VAE, machine: Machine) -> Scene:
    """The streams of a setting side by side; raises ConfigError for a clip that cannot be read."""
    encoded = encode_prompts(setting.model, setting.checkpoint, setting.prompts, machine)
    texts = dict(zip(setting.prompts, encoded, strict=True))
    sources: dict[tuple[int, int], tuple[Tensor, ...]] = {}
    scenes = []
    for number, (prompt, clip, window) in enumerate(setting.streams()):
        if (clip, window) not in sources:
            video = read_window(setting, clip, window)
            sources[clip, window] = tuple(encode_clip(vae, setting.model.geometry, video, machine))
        scenes.append(Scene((prompt,), sources[clip, window], *texts[prompt], (setting.seed + number,)))
    return batch(scenes)


def read_window(setting: Setting, clip: int, window: int) -> np.ndarray:
    """The frames of a window, uint8 (F, H, W, 3); a clip that ends before turns back."""
    geometry, frames = setting.model.geometry, setting.frames
    steady = -(-((window + 1) * frames - geometry.first_frames) // geometry.steady_frames)
    return read_clip(setting.clips[clip], geometry, 1 + steady)[window * frames : (window + 1) * frames]


def about(setting: Setting, machine: Machine) -> dict[str, object]:
    """Where a search's calibration comes from, as `sana-build calibrate` records it."""
    model = setting.model
    return {
        "model": model.name,
        "checkpoint": setting.checkpoint.describe(),
        "size": f"{model.width}x{model.height}",
        "steps": model.stream.steps,
        "chunks": setting.chunks,
        "scenes": [setting.describe(stream) for stream in range(len(setting.streams()))],
        "computed": f"{machine.device}, {machine.dtype}".replace("torch.", ""),
    }
