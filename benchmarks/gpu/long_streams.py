"""How far BF16 streams drift from FP32 ones in 200 chunks: `python benchmarks/gpu/long_streams.py`.

Every stream feeds on its own state: one in FP32, one in plain BF16 PyTorch, one of the engine. Random weights at the
production width on small frames, and the trained tiny model. Writes benchmarks/results/long_streams.json and
docs/long-streams.png.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_build.calibrate import small_frames
from sana_build.torch_trials import relative_rms, to_bf16
from sana_export.checkpoint import resolve
from sana_export.configs import MODELS, ModelConfig
from sana_export.dit import DiT
from sana_export.dtypes import compute_dtype
from sana_export.sampler import DiTStream
from sana_gpu.denoiser import load_denoiser
from sana_gpu.dit import prepare_dit
from sana_runtime.schedule import chunk_noise, streaming_schedule
from sana_runtime.state import IN, as_inputs, from_outputs

ROOT = Path(__file__).parents[2]
CHUNKS = 200
SETTLED = 20
"""Chunks after which the window is full and the state has turned over; from there on the error may not grow."""

GROWTH = 1.5
"""How much the worst error of the last half may be above the worst of the first half after SETTLED."""


CASES = {
    "production width, random weights": lambda: (small_frames(MODELS["sana-streaming"], 4), "random:0"),
    "tiny, trained": lambda: (MODELS["tiny"], MODELS["tiny"].checkpoint),
}


def sources(model: ModelConfig, chunks: int) -> list[Tensor]:
    """A latent that drifts slowly, as video does, with noise of its own."""
    generator = torch.Generator().manual_seed(1)
    shape = model.geometry.latent_shape(model.geometry.chunk(1))
    still, moving = (torch.randn(shape[0], shape[1], 1, *shape[3:], generator=generator) for _ in range(2))
    result, frame = [], 0
    for index in range(chunks):
        count = model.geometry.latent_shape(model.geometry.chunk(index))[2]
        phase = 0.05 * torch.arange(frame, frame + count).reshape(1, 1, -1, 1, 1)
        result.append(0.8 * (still * phase.cos() + moving * phase.sin()))
        frame += count
    return result


def noises(model: ModelConfig, chunks: int) -> list[Tensor]:
    geometry = model.geometry
    return [torch.from_numpy(chunk_noise(0, i, geometry.latent_shape(geometry.chunk(i)))) for i in range(chunks)]


@torch.inference_mode()
def reference(dit: DiT, model: ModelConfig, text: Tensor, mask: Tensor, chunks: int, device: str) -> Iterator[Tensor]:
    """Latents of a stream of PyTorch's, in the precision of `dit`."""
    from sana_build.rollouts import float32_latents

    stream = DiTStream(dit, streaming_schedule(model.stream.steps), model.stream.window, model.stream.sink)
    with float32_latents(dit):
        prompt = dit.prompt(text.to(device, compute_dtype(dit)), mask.to(device, compute_dtype(dit)))
        for noise, source in zip(noises(model, chunks), sources(model, chunks), strict=True):
            yield stream.step(noise.to(device), source.to(device), prompt).cpu()


def served(
    dit: DiT, model: ModelConfig, text: Tensor, mask: Tensor, chunks: int, device: str, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Latents of a stream of the engine's."""
    config = {"dit": asdict(model.dit), "stream": asdict(model.stream), "geometry": asdict(model.geometry)}
    weights = prepare_dit(config["dit"], dit.state_dict(), {}, {}, dtype)
    engines = load_denoiser({**config, "streams": 1}, weights, device)
    prompt = engines["prompt"].run({"text": text.numpy(), "text_mask": mask.numpy()})
    specs = {spec.name: spec for spec in engines["steady"].inputs}
    state = {
        name.removesuffix(IN): engines["steady"].memory.zeros(spec) for name, spec in specs.items() if name.endswith(IN)
    }
    slots = specs["recent_valid"].shape[1]
    for index, (noise, source) in enumerate(zip(noises(model, chunks), sources(model, chunks), strict=True)):
        feeds = {"noise": noise.numpy(), "source": source.numpy(), **prompt}
        if index:
            valid = np.zeros((1, slots), np.float32)
            valid[:, slots - min(index - 1, slots) :] = 1
            start = np.array([model.geometry.chunk(index).start], np.int64)
            feeds |= {"frame_start": start, "recent_valid": valid, **as_inputs(state)}
        outputs = engines["steady" if index else "first"].run(feeds)
        state |= from_outputs(outputs)
        yield outputs["latent"].cpu()


def drift(name: str, chunks: int, device: str) -> dict[str, list[float]]:
    """Relative RMS error of every chunk's latent against the FP32 stream."""
    model, spec = CASES[name]()
    dit = resolve(spec, model).load_dit(model.dit).to(device)
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(1, model.dit.text_tokens, model.dit.caption_width, generator=generator)
    mask = torch.ones(1, model.dit.text_tokens)
    mask[:, 40:] = 0
    arguments = model, text, mask, chunks, device
    engine = list(served(dit, *arguments, torch.bfloat16))
    exact = list(reference(dit, *arguments))
    plain = list(reference(to_bf16(dit), *arguments))
    return {
        label: [relative_rms(a, b) for a, b in zip(found, exact, strict=True)]
        for label, found in (("engine", engine), ("plain BF16", plain))
    }


def bounded(errors: list[float]) -> bool:
    """Whether the error stops growing once the stream has settled."""
    later = errors[SETTLED:]
    return max(later[len(later) // 2 :]) <= GROWTH * max(later[: len(later) // 2])


def draw(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5.5 * len(results), 3.4), squeeze=False)
    for axis, (name, curves) in zip(axes[0], results.items(), strict=True):
        for label, errors in curves.items():
            axis.plot(errors, label=label, linewidth=1)
        axis.set(title=name, xlabel="chunk", ylim=(0, None))
        axis.legend()
    axes[0][0].set_ylabel("relative RMS error against FP32")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "long_streams.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "long-streams.png")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for name in CASES:
        results[name] = drift(name, arguments.chunks, device)
        for label, errors in results[name].items():
            print(f"{name}, {label}: chunk 0 {errors[0]:.2e}, last {errors[-1]:.2e}, worst {max(errors):.2e}, "
                  f"{'bounded' if bounded(errors) else 'GROWING'}", flush=True)  # fmt: skip
    about = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    arguments.output.write_text(json.dumps({"about": about, "errors": results}, indent=1) + "\n")
    draw(results, arguments.picture)


if __name__ == "__main__":
    main()
