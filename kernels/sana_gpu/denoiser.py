"""Engines of the denoiser on a GPU: prompts, and whole chunks of 1 to 8 streams, each kind as one CUDA graph."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from sana_gpu.addresses import fit
from sana_gpu.denoiser_buffers import Buffers, Room
from sana_gpu.denoiser_layout import POSITION, Layout
from sana_gpu.denoiser_prompt import PromptEngine, keys_used
from sana_gpu.dit import DiT
from sana_gpu.dit_blocks import Scene, Weights
from sana_gpu.graphs import Graphs
from sana_gpu.limits import memory_levers
from sana_gpu.rope import RopeTables
from sana_runtime.engine import check_feeds
from sana_runtime.errors import ConfigError, SequenceError
from sana_runtime.memory import Array, TorchMemory
from sana_runtime.schedule import streaming_schedule

MOST_STREAMS = 8


class ChunkEngine:
    """All passes of one kind of chunk, from noise to the finished latent and the state behind it.

    Reads `noise` and `source` f32 (1, C, T, h, w), the `prompt`, and for a steady chunk frame_start int64 (1,),
    recent_valid f32 (1, slots), 1.0 where a slot holds a chunk, newest last, and state.in, sink.in and recent.in.
    Returns `latent`, state.out, and sink.out or recent.out. What is carried are tensors of bytes (`Layout.packs`).
    """

    def __init__(
        self, dit: DiT, layout: Layout, rope: RopeTables, memory: TorchMemory, steady: bool, room: Room
    ) -> None:
        self.memory, self.dit, self._layout, self._rope = memory, dit, layout, rope
        self.inputs, self.outputs = layout.chunk_inputs(steady), layout.chunk_outputs(steady)
        self._tensors = [spec.name for spec in self.inputs if spec.name not in POSITION]
        self._steady, self._room = steady, room
        self.buffers = Buffers(layout, self.inputs, self.outputs, steady, room)
        self._graphs = Graphs(memory)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raises EngineError naming the tensor that is missing, unknown or misshapen, SequenceError past the table."""
        return self.run_batch([feeds])[0]

    @torch.inference_mode()
    def run_batch(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """As `run` for several streams; those that see equally many recent chunks are computed together."""
        for one in feeds:
            check_feeds(self.inputs, one)
            self._check_position(one)
        groups = defaultdict(list)
        for index, one in enumerate(feeds):
            groups[recent_chunks(one)].append(index)
        results: dict[int, dict[str, Array]] = {}
        with self.memory.stream(), memory_levers(f"the chunks of {len(feeds)} streams"):
            for recent, members in groups.items():
                for batch in batches(members, self._room.streams):
                    results |= zip(batch, self._run([feeds[index] for index in batch], recent), strict=True)
        return [results[index] for index in range(len(feeds))]

    @torch.inference_mode()
    def warm(self) -> None:
        """Compile and capture every graph that a stream may ask for, so that no chunk waits for that."""
        with self.memory.stream(), memory_levers(f"the graphs of {self._room.streams} streams"):
            for recent in range(self._layout.slots + 1 if self._steady else 1):
                for count in sizes(self._room.streams):
                    self._graphs.get((count, recent), partial(self._compute, count, recent))
            self._room.forget()

    def _check_position(self, feeds: Mapping[str, Array]) -> None:
        start, frames = int(feeds["frame_start"][0]) if self._steady else 0, feeds["noise"].shape[2]
        if start + frames > self._layout.max_frames:
            raise SequenceError(
                f"latent frames {start} to {start + frames - 1} are beyond the rotary table of "
                f"{self._layout.max_frames} frames: start a new stream"
            )

    def _run(self, feeds: Sequence[Mapping[str, Array]], recent: int) -> list[dict[str, Array]]:
        count = len(feeds)
        starts = [int(one["frame_start"][0]) for one in feeds] if self._steady else []
        given = [{name: fit(one[name], self.memory) for name in self._tensors} for one in feeds]
        made = [{spec.name: self.memory.empty(spec) for spec in self.outputs} for _ in feeds]
        self.buffers.point(given, made, starts)
        self._graphs.get((count, recent), partial(self._compute, count, recent))()
        self.buffers.keep(given)
        return made

    def _compute(self, count: int, recent: int) -> None:
        """The chunk of the first `count` streams that the buffers point to, as it is recorded."""
        self.buffers.bring(count, recent)
        noise, source = (self.buffers.tensor(name, count) for name in ("noise", "source"))
        latent, state = self.dit.chunk(noise, source, self.buffers.pasts(count, recent), self.scene(count))
        self.buffers.take(latent, state, count, recent)

    def scene(self, count: int) -> Scene:
        """Angles and prompts of the first `count` streams in the buffers."""
        geometry, buffers = self._layout.geometry, self.buffers
        frames = buffers.tensor("noise", count).shape[2]
        rope = self._rope.rows(buffers.tensor("frame_start", count), frames)
        bias = buffers.tensor("text_bias", count).flatten(1)
        return Scene(rope, bias, keys_used(bias), frames, geometry.latent_height, geometry.latent_width)


def sizes(most: int) -> list[int]:
    """The batches there are graphs of: powers of two, the largest first."""
    return [1 << bit for bit in reversed(range(most.bit_length()))]


def batches(members: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Split into batches of those sizes. The GPU is full with one stream, so a split costs little."""
    start = 0
    while start < len(members):
        size = next(size for size in sizes(most) if size <= len(members) - start)
        yield members[start : start + size]
        start += size


def recent_chunks(feeds: Mapping[str, Array]) -> int:
    """How many recent slots hold a chunk."""
    return int(np.count_nonzero(feeds["recent_valid"])) if "recent_valid" in feeds else 0


def load_denoiser(
    config: Mapping[str, Any], weights: Weights, device: str, attention: str | None = None
) -> dict[str, PromptEngine | ChunkEngine]:
    """Engines "prompt", "first" and "steady" from weights of `prepare_dit` on `device`.

    `config` holds the fields of the model's configurations as `dit`, `geometry` and `stream`, and the most `streams` in
    a batch. Raises ConfigError for a window that keeps no first chunk.
    """
    stream, dit = config["stream"], config["dit"]
    if stream["window"] < 2 or not stream["sink"]:
        raise ConfigError("the torch backend needs a window of at least 2 chunks with the first one as its sink")
    dtype = weights["x_embedder.weight"].dtype
    gdn = tuple(f"blocks.{block}.attn.a_log" in weights for block in range(dit["depth"]))
    layout = Layout.of(config, gdn, str(dtype).removeprefix("torch."))
    memory = TorchMemory(device)
    schedule = streaming_schedule(stream["steps"])
    model = DiT(dit, weights, schedule, attention or ("cudnn" if device.startswith("cuda") else "math"))
    geometry = layout.geometry
    angles = torch.float16 if dtype == torch.bfloat16 else dtype
    rope = RopeTables(layout.head, dit["max_frames"], geometry.latent_height, geometry.latent_width, angles, device)
    room = Room(layout, min(config["streams"], MOST_STREAMS), device)
    chunks = {
        variant: ChunkEngine(model, layout, rope, memory, variant == "steady", room) for variant in ("first", "steady")
    }
    return {"prompt": PromptEngine(weights, layout, memory), **chunks}
