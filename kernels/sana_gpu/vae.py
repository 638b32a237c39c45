"""Engines of the VAE's encoder and decoder on a GPU: a CUDA graph for the start of a stream, one for later chunks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from sana_gpu.addresses import AddressTable, Pack, Part, fit
from sana_gpu.graphs import Graphs
from sana_gpu.limits import memory_levers
from sana_gpu.vae_network import Carried, InHand, Tensors, decode, encode
from sana_gpu.vae_weights import prepare_vae
from sana_runtime.engine import check_feeds
from sana_runtime.errors import EngineError, choose
from sana_runtime.geometry import StreamGeometry
from sana_runtime.memory import Array, TorchMemory
from sana_runtime.state import IN, OUT, as_inputs, from_outputs
from sana_runtime.tensors import TensorSpec, dtype_name

__all__ = ["Engines", "FirstEngine", "PartEngine", "VAEEngine", "load_vae", "prepare_vae"]

MOST_STREAMS = 8

Engines = Mapping[str, "PartEngine"]
"""Engines of a part by kind of chunk."""

Walk = Callable[[Tensors, Mapping[str, Any], Tensor, Carried], Iterator[Tensor]]
"""Makes what a part makes, in pieces along time; what it carries is there with the first of them."""


@dataclass(frozen=True)
class Port:
    """What goes into a part and what comes out, beside its state."""

    given: str
    made: str
    walk: Walk


PORTS = {"vae_encoder": Port("frames", "source", encode), "vae_decoder": Port("latent", "edited", decode)}
STATE = "state"
TIME = {"frames": 1, "source": 2, "latent": 2, "edited": 1}
"""The dimension of a tensor that a stream continues."""


@dataclass(frozen=True)
class ByAddress:
    """Carried frames where a call's table says that they are; a first chunk has none of the chunk before."""

    table: AddressTable
    at_start: bool

    def read(self, name: str, into: Tensor) -> None:
        self.table.fetch(name + IN, into[None])

    def write(self, name: str, frames: Tensor) -> None:
        self.table.leave(name + OUT, frames[None])


class PartEngine(ABC):
    """One part of the VAE for one kind of chunk, which takes streams one after the other."""

    memory: TorchMemory
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raises EngineError naming the tensor that is missing, unknown or misshapen."""
        return self.run_batch([feeds])[0]

    @torch.inference_mode()
    def run_batch(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """One stream after the other: the convolutions of one fill the GPU, and more would take more memory."""
        if not 1 <= len(feeds) <= MOST_STREAMS:
            raise EngineError(f"{len(feeds)} streams in one batch, the engine takes 1 to {MOST_STREAMS}")
        for one in feeds:
            check_feeds(self.inputs, one)
        with self.memory.stream(), memory_levers(f"the VAE's {self.outputs[0].name} of {len(feeds)} streams"):
            return [self._run(one) for one in feeds]

    @abstractmethod
    def warm(self) -> None:
        """Make ready whatever a chunk would wait for."""

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


class VAEEngine(PartEngine):
    """A chunk as one graph.

    `frames` u8 (1, F, H, W, 3) to `source` f32 (1, C, T, h, w), or `latent` f32 to `edited` u8. State is the last two
    input frames of each convolution, (1, 2, H', W', C) with the decoder's halo, in one tensor of bytes: state.in, which
    the first chunk has none of, and state.out. The graph reads and writes the streams' own tensors, so it holds none.
    """

    def __init__(
        self, port: Port, given: Tensor, state: Tensors, weights: Tensors, config: Mapping[str, Any],
        memory: TorchMemory,
    ) -> None:  # fmt: skip
        """`given` and `state` are of the shapes and types the engine takes; a first chunk has no state."""
        self.memory, self._port, self._weights, self._config = memory, port, weights, config
        carried = InHand({name: x[0] for name, x in state.items()})
        made = list(port.walk(outline(weights), config, given, carried))
        self.pack = Pack(tuple(spec(name, x[None]) for name, x in carried.written.items()))
        self.inputs = (spec(port.given, given), *([self.pack.spec(STATE + IN)] if state else []))
        self.outputs = (spec(port.made, torch.cat(made, TIME[port.made])), self.pack.spec(STATE + OUT))
        self._pieces = [(place, memory.mark()) for place in places(made, TIME[port.made])]
        self._table = AddressTable(self._parts(made), memory.device)
        self._carried = ByAddress(self._table, at_start=not state)
        self._graphs = Graphs(memory)

    def warm(self) -> None:
        """Compile its kernels, let cuDNN choose its own, and capture the graph, so that no chunk waits for that."""
        self.run({spec.name: self.memory.zeros(spec) for spec in self.inputs})

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: fit(array, self.memory) for name, array in feeds.items()}
        made = {spec.name: self.memory.empty(spec) for spec in self.outputs}
        self._table.point({**given, **made})
        self._graphs.get("chunk", self._compute)()
        self.memory.note_pieces(made[self._port.made], self._pieces)
        return made

    def _parts(self, pieces: Sequence[Tensor]) -> dict[str, Part]:
        """All that the graph reads and writes; pieces of what is made lie in it one behind the other."""
        given, made = self.inputs[0], self._port.made
        parts = {given.name: Part(given.name, given)}
        starts = accumulate((piece.nbytes for piece in pieces), initial=0)
        for index, (piece, start) in enumerate(zip(pieces, starts, strict=False)):
            parts[self._name(index)] = Part(made, spec(self._name(index), piece), start)
        for end in [IN, OUT] if len(self.inputs) > 1 else [OUT]:
            parts |= {one.name + end: Part(STATE + end, one, start) for one, start in self.pack.places()}
        return parts

    def _name(self, index: int) -> str:
        """Of a piece of what is made, in the table."""
        return f"{self._port.made}.{index}"

    def _compute(self) -> None:
        """The chunk whose tensors the table points to, as it is recorded."""
        given = self.memory.empty(self.inputs[0])
        self._table.fetch(self._port.given, given)
        for index, piece in enumerate(self._port.walk(self._weights, self._config, given, self._carried)):
            self._table.leave(self._name(index), piece)
            self._pieces[index][1].record()


class FirstEngine(PartEngine):
    """A first chunk as two pieces of a stream: what it has more of than a later one, and the rest like a later one.

    So no graph is of more frames than a later chunk has, and the room that graphs keep is that much smaller.
    """

    def __init__(self, start: VAEEngine, later: VAEEngine) -> None:
        self.memory, self._start, self._later = later.memory, start, later
        self.inputs = (joined(start.inputs[0], later.inputs[0]),)
        self.outputs = (joined(start.outputs[0], later.outputs[0]), *later.outputs[1:])

    def warm(self) -> None:
        """As the engines of its pieces; the graph of the larger one is captured first."""
        self._later.warm()
        self._start.warm()

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        given, made = self.inputs[0].name, self.outputs[0].name
        head, tail = cut(feeds[given], TIME[given], self._start.inputs[0].shape[TIME[given]])
        before = self._start.run({given: head})
        after = self._later.run({given: tail, **as_inputs(from_outputs(before))})
        return after | {made: torch.cat([before[made], after[made]], TIME[made])}


def places(pieces: Sequence[Tensor], dimension: int) -> list[tuple[slice, ...]]:
    """Where each lies in the tensor that they are of."""
    ends = list(accumulate((piece.shape[dimension] for piece in pieces), initial=0))
    return [(*[slice(None)] * dimension, slice(*both)) for both in pairwise(ends)]


def joined(one: TensorSpec, next_one: TensorSpec) -> TensorSpec:
    """Of a tensor in two pieces, one after the other in time."""
    shape, time = list(one.shape), TIME[one.name]
    shape[time] += next_one.shape[time]
    return replace(one, shape=tuple(shape))


def cut(array: Array, dimension: int, size: int) -> tuple[Array, Array]:
    """The first `size` of a dimension, and the rest."""
    every = (slice(None),) * dimension
    return array[*every, :size], array[*every, size:]


def load_vae(part: str, config: Mapping[str, Any], weights: Tensors, device: str) -> Engines:
    """Engines of `part`, "first" and "steady", from weights of `prepare_vae` on `device`.

    `config` holds the fields of the VAE's configuration as `vae` and those of the stream's geometry as `geometry`.
    """
    port, memory = choose("part of the VAE", part, PORTS), TorchMemory(device)
    # Shapes are few and stay the same: a stream's first chunks pay for trying all of cuDNN's ways once.
    torch.backends.cudnn.benchmark = True
    geometry = StreamGeometry(**config["geometry"])
    more = geometry.first_latents - geometry.steady_latents
    short = replace(geometry, first_latents=more) if more > 0 else geometry
    start, later = example(port, short, 0), example(port, geometry, 1)
    carried = InHand({})
    list(port.walk(outline(weights), config["vae"], start, carried))
    state = {name: tensor[None] for name, tensor in carried.written.items()}
    common = weights, config["vae"], memory
    begin, steady = VAEEngine(port, start, {}, *common), VAEEngine(port, later, state, *common)
    return {"first": FirstEngine(begin, steady) if more > 0 else begin, "steady": steady}


def outline(tensors: Tensors) -> Tensors:
    """The same shapes and types without values: what is computed of them costs nothing."""
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}


def example(port: Port, geometry: StreamGeometry, index: int) -> Tensor:
    """What a part is given of chunk `index`, without values."""
    chunk = geometry.chunk(index)
    if port.given == "frames":
        return torch.empty(1, chunk.frames, geometry.height, geometry.width, 3, dtype=torch.uint8, device="meta")
    return torch.empty(geometry.latent_shape(chunk), device="meta")


def spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, dtype_name(tensor), tuple(tensor.shape))
