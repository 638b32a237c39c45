"""The transformer on this GPU: how far it is from float32, how long its parts take, and which kernels that is.

Random weights at production size, medians over CUDA events. `--profile` prints the most expensive kernels of a chunk.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import milliseconds
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import gdn_gpu

from sana_export.configs import SANA_STREAMING, ModelConfig
from sana_export.dit import DiT
from sana_export.random_weights import _draw
from sana_export.sampler import DiTStream
from sana_gpu.denoiser import ChunkEngine, load_denoiser
from sana_gpu.dit import prepare_dit
from sana_gpu.dit_blocks import Block, Modulation, Norm, Past, Scene
from sana_quant.calibration import observe
from sana_quant.groups import layers
from sana_runtime.engine import Engine
from sana_runtime.schedule import chunk_noise, streaming_schedule
from sana_runtime.state import as_inputs, from_outputs

MARGIN = 1.2
"""How much further from float32 than plain bfloat16 PyTorch the engine may be."""
FP8_ERROR = 0.05
"""How far from float32 the engine with all layers in FP8 may be; on an H200 it was 0.036."""
CHUNKS = 3
TFLOPS, TERABYTES = {"bf16": 790.0, "fp8": 1471.0}, 4.27
"""Measured on one H200: matrix products, and a copy (read and write)."""

Named = dict[str, Any]


def random_dit(model: ModelConfig, seed: int = 0) -> DiT:
    """Of random weights in float32, made on the GPU."""
    with torch.device("cuda"):
        dit = DiT(model.dit).eval().requires_grad_(False)
        generator = torch.Generator("cuda").manual_seed(seed)
        for name, parameter in dit.named_parameters():
            parameter.copy_(_draw(name, parameter.shape, generator))
    return dit


def chunk_tensors(model: ModelConfig, index: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise and source latent of a chunk."""
    shape = model.geometry.latent_shape(model.geometry.chunk(index))
    return tuple(torch.from_numpy(chunk_noise(seed + i, index, shape)).cuda() for i in range(2))


def text(model: ModelConfig) -> tuple[Tensor, Tensor]:
    """A random prompt with padding."""
    mask = torch.zeros(1, model.dit.text_tokens, device="cuda")
    mask[:, :200] = 1
    generator = torch.Generator("cuda").manual_seed(3)
    return torch.randn(*mask.shape, model.dit.caption_width, device="cuda", generator=generator), mask


class Stream:
    """One stream through the engines."""

    def __init__(self, engines: Mapping[str, Engine], model: ModelConfig, seed: int = 0) -> None:
        self.engines, self.model, self.seed = engines, model, seed
        text_and_mask = dict(zip(("text", "text_mask"), text(model), strict=True))
        self.prompt = engines["prompt"].run(text_and_mask)
        self.index, self.state = 0, {}

    def feeds(self) -> Named:
        """Of the next chunk."""
        noise, source = chunk_tensors(self.model, self.index, self.seed)
        feeds = {"noise": noise, "source": source, **self.prompt}
        if self.index == 0:
            return feeds
        slots = self.model.stream.window - 1
        valid = torch.zeros(1, slots)
        valid[:, slots - min(self.index - 1, slots) :] = 1
        start = torch.tensor([self.model.geometry.chunk(self.index).start])
        return feeds | {"frame_start": start, "recent_valid": valid} | as_inputs(self.state)

    def step(self) -> Tensor:
        engine = self.engines["steady" if self.index else "first"]
        outputs = engine.run(self.feeds())
        if self.index == 0:
            steady = self.engines["steady"]
            self.state = {
                spec.name.removesuffix(".in"): steady.memory.zeros(spec)
                for spec in steady.inputs
                if spec.name.endswith(".in")
            }
        self.state |= from_outputs(outputs)
        self.index += 1
        return outputs["latent"]


def load(dit: DiT, model: ModelConfig, precision: str, streams: int = 1, attention: str = "cudnn") -> Named:
    """Engines with all policy layers in one precision."""
    parts = {"dit": model.dit, "geometry": model.geometry, "stream": model.stream}
    config = {name: asdict(part) for name, part in parts.items()} | {"streams": streams}
    wanted = {layer.path: precision for layer in layers(model.dit.depth)}
    amax = ranges(dit, model) if precision == "fp8" else {}
    weights = prepare_dit(config["dit"], dit.state_dict(), wanted, amax)
    return load_denoiser(config, weights, "cuda", attention)


@torch.inference_mode()
def ranges(dit: DiT, model: ModelConfig) -> dict[str, float]:
    """Of every layer's input in the first chunk of a stream."""
    plain = deepcopy(dit).bfloat16()
    with observe(plain) as observer:
        reference_latents(plain, model, 2)
    return dict(observer.calibration({}).amax)


def reference_latents(dit: DiT, model: ModelConfig, chunks: int = CHUNKS) -> list[Tensor]:
    """Of a stream through the model's definition in the type of its weights; latents in float32 between the steps."""
    kind = next(dit.parameters()).dtype
    hooks = [
        dit.register_forward_pre_hook(lambda _, inputs: (*(x.to(kind) for x in inputs[:2]), *inputs[2:])),
        dit.register_forward_hook(lambda _module, _inputs, output: (output[0].float(), output[1])),
    ]
    stream = DiTStream(dit, streaming_schedule(model.stream.steps), model.stream.window, model.stream.sink)
    tokens, mask = text(model)
    prompt = dit.prompt(tokens.to(kind), mask)
    latents = [stream.step(*chunk_tensors(model, index), prompt) for index in range(chunks)]
    for hook in hooks:
        hook.remove()
    return latents


def off(got: Tensor, wanted: Tensor) -> float:
    error = (got.double() - wanted.double()).square().mean() / wanted.double().square().mean()
    return float(torch.nan_to_num(error.sqrt(), nan=float("inf")))


@torch.inference_mode()
def errors(dit: DiT, model: ModelConfig, engines: Mapping[str, Named]) -> dict[str, list[float]]:
    """Of every chunk's latent against float32: the engines by name, and plain bfloat16 PyTorch."""
    exact = reference_latents(dit, model)
    plain = reference_latents(deepcopy(dit).bfloat16(), model)
    found = {"plain bf16": [off(*pair) for pair in zip(plain, exact, strict=True)]}
    for name, loaded in engines.items():
        stream = Stream(loaded, model)
        found[name] = [off(stream.step(), wanted) for wanted in exact]
    return found


def check(found: Mapping[str, list[float]]) -> None:
    """End the run if an engine is further from float32 than it may be."""
    for name in found.keys() - {"plain bf16"}:
        for chunk, (ours, plain) in enumerate(zip(found[name], found["plain bf16"], strict=True)):
            if not ours <= (FP8_ERROR if name == "fp8" else MARGIN * plain):
                sys.exit(f"DiT, {name}: chunk {chunk} is {ours:.2e} off, plain bfloat16 is {plain:.2e} off")


def steady_stream(engines: Named, model: ModelConfig, seed: int = 0) -> Stream:
    """A stream whose window is full."""
    stream = Stream(engines, model, seed)
    for _ in range(model.stream.window):
        stream.step()
    return stream


@torch.inference_mode()
def chunk_times(engines: Named, model: ModelConfig, batches: tuple[int, ...] = (1,)) -> dict[str, float]:
    """Milliseconds of a whole chunk, state in and out included."""
    stream = steady_stream(engines, model)
    first, steady = Stream(engines, model).feeds(), stream.feeds()
    times = {"first chunk": milliseconds(partial(engines["first"].run, first))}
    for batch in batches:
        times[f"steady chunk, batch {batch}"] = milliseconds(partial(engines["steady"].run_batch, [steady] * batch))
    return times


@torch.inference_mode()
def pass_time(engine: ChunkEngine) -> float:
    """Milliseconds of one evaluation of a steady chunk."""
    noise, source = (engine.buffers.tensor(name, 1).flatten(2).transpose(1, 2) for name in ("noise", "source"))
    pasts, scene, moment = engine.buffers.pasts(1, 1), engine.scene(1), engine.dit.denoising[0]
    return gdn_gpu.microseconds([lambda: engine.dit.evaluate(noise, source, moment, pasts, scene)], 10) / 1e3


@torch.inference_mode()
def block_times(engine: ChunkEngine) -> dict[str, float]:
    """Microseconds of one block of either kind, and of its self-attention with all projections."""
    pasts, scene, dit = engine.buffers.pasts(1, 1), engine.scene(1), engine.dit
    times = {}
    for kind, index in (("GDN", 0), ("softmax", 3)):
        block, m = dit.blocks[index], Modulation(*dit.denoising[0].blocks[index])
        x = torch.randn(1, scene.frames * scene.height * scene.width, block.hidden, device="cuda").to(dit.dtype)
        h = x, (x / 4).to(torch.float8_e4m3fn)
        norm = Norm(m.shift, m.scale, block.form)
        times[f"{kind} block"] = gdn_gpu.microseconds([partial(block, x, h, m, pasts[index], scene, norm)])
        times[f"{kind} layer"] = gdn_gpu.microseconds([partial(attention_layer, block, h, pasts[index], scene)])
    return times


def attention_layer(block: Block, h: tuple[Tensor, Tensor], past: Past, scene: Scene) -> Tensor:
    out = block.linears[0]
    return out(block.attention(h, past, scene, out, h[0].shape[1])[0])


@torch.inference_mode()
def kernel_times(engines: Named, model: ModelConfig) -> list[tuple[str, int, float]]:
    """Every kernel of a steady chunk: name, calls, milliseconds; the longest first."""
    feeds = steady_stream(engines, model).feeds()
    engines["steady"].run(feeds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        engines["steady"].run(feeds)
        torch.cuda.synchronize()
    rows = [(row.key, row.count, row.self_device_time_total / 1e3) for row in profiler.key_averages()]
    return sorted((row for row in rows if row[2]), key=lambda row: -row[2])


def print_kernels(rows: list[tuple[str, int, float]], most: int) -> None:
    total = sum(time for _, _, time in rows)
    print(f"{total:8.2f} ms in {sum(count for _, count, _ in rows)} kernels")
    for name, count, time in rows[:most]:
        print(f"{time:8.2f} ms {100 * time / total:5.1f} % {count:6} x {1e3 * time / count:8.1f} us  {name[:110]}")


def floor(model: ModelConfig, precision: str, kind: str = "steady") -> float:
    """Milliseconds of a chunk's products and softmax attention alone, at the rates of large ones."""
    dit, geometry = model.dit, model.geometry
    hidden, first = dit.hidden, geometry.first_latents * geometry.tokens_per_frame
    tokens = geometry.steady_latents * geometry.tokens_per_frame if kind == "steady" else first
    window = first + (model.stream.window * tokens if kind == "steady" else 0)
    alone = hidden * hidden * dit.depth
    narrow = (3 + 1 + 2 + 3) * alone + 3 * hidden * dit.ffn_width * dit.depth
    attended = len(dit.softmax_blocks) * window * hidden + dit.depth * dit.text_tokens * hidden
    seconds = 2 * tokens * narrow / TFLOPS[precision] + 2 * tokens * (alone + 2 * attended) / TFLOPS["bf16"]
    return (model.stream.steps + 1) * seconds / 1e9


def layer_floor(model: ModelConfig, precision: str) -> float:
    """Microseconds of a GDN layer's products, and of reading and writing what lies between them once."""
    geometry, hidden = model.geometry, model.dit.hidden
    tokens = geometry.steady_latents * geometry.tokens_per_frame
    products = 2 * tokens * hidden * hidden * (4 / TFLOPS[precision] + 1 / TFLOPS["bf16"]) / 1e6
    return products + gdn_gpu.layer_floor(1, geometry.steady_latents)


PARTS = {
    "products": ("nvjet", "gemm", "cutlass", "splitK"),
    "softmax attention": ("fmha", "flash", "sdpa", "cudnn"),
    "GDN core": ("prepare", "summaries", "scan", "readout"),
    "cross-attention": ("cross_attention", "inverse_row_rms"),
    "depthwise": ("depthwise_glu",),
    "norms, residuals, gates": ("residual_norm", "write_window", "gate_rows", "stack_frames"),
}
"""What the names of kernels contain, the first that fits."""


def by_part(rows: list[tuple[str, int, float]]) -> dict[str, float]:
    """Milliseconds of a chunk per part."""
    times = dict.fromkeys([*PARTS, "other"], 0.0)
    for name, _, time in rows:
        fits = (part for part, pieces in PARTS.items() if any(piece in name for piece in pieces))
        times[next(fits, "other")] += time
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="print the most expensive kernels of a steady chunk")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    model = SANA_STREAMING
    dit = random_dit(model)
    engines = {name: load(dit, model, name, max(arguments.batches)) for name in arguments.precision}
    found = errors(dit, model, engines)
    print(json.dumps(found), flush=True)
    check(found)
    result: Named = {**gdn_gpu.about(), "errors": found}
    for name, loaded in engines.items():
        result[name] = measured(loaded, model, tuple(arguments.batches)) | {"floor_ms": floor(model, name)}
        rows = kernel_times(loaded, model)
        result[name]["parts_ms"] = by_part(rows)
        print(json.dumps(result[name]), flush=True)
        if arguments.profile:
            print_kernels(rows, 10)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def measured(engines: Named, model: ModelConfig, batches: tuple[int, ...]) -> Named:
    return {
        "chunk_ms": chunk_times(engines, model, batches),
        "pass_ms": pass_time(engines["steady"]),
        "blocks_us": block_times(engines["steady"]),
    }


if __name__ == "__main__":
    main()
