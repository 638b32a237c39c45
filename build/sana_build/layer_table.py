"""The layers of a TensorRT engine as its builder logged them: without a GPU driver an engine cannot be asked."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sana_runtime.errors import BuildError

MULTIPLYING = ("gemm", "runtime_fusion")
"""Layer types that hold a matrix product; the second is a product that the runtime fuses with what follows it."""

CUSTOM = "custom_layer"
"""A plugin of ours."""

SYNCHRONISING = ("signal", "wait")

DTYPES = {"FP4E2M1": "nvfp4", "FP8": "fp8", "BFloat16": "bf16", "Half": "fp16", "Float": "fp32"}
"""The builder's names of what a GEMM reads, and what a policy calls them."""

LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), "
    r"Inputs: \[(?P<inputs>.*?)\], Constants: .*Metadata: (?P<nodes>.*)$"
)
DATATYPE = re.compile(r"Datatype: (\w+)")
NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: the precisions of its inputs, and the ONNX nodes it was made from."""

    name: str
    type: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        return self.type in MULTIPLYING


def parse_layers(log: Iterable[str]) -> tuple[EngineLayer, ...]:
    """The layer table among a builder's messages; raises BuildError if it is not there."""
    lines = (line for message in log for line in message.splitlines())
    layers = tuple(_layer(match) for line in lines if (match := LAYER.match(line)))
    if not layers:
        raise BuildError("the builder logged no layer table: this TensorRT writes another log than sana-build reads")
    return layers


def _layer(match: re.Match[str]) -> EngineLayer:
    inputs = tuple(DTYPES.get(name, name.lower()) for name in DATATYPE.findall(match["inputs"]))
    return EngineLayer(match["name"], match["type"], inputs, tuple(NODE.findall(match["nodes"])))


def kernels(layers: Iterable[EngineLayer]) -> Iterator[EngineLayer]:
    """The layers that do something."""
    return (layer for layer in layers if layer.type not in SYNCHRONISING)


def gemm_counts(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """How many matrix products run in each precision; merged ones count once."""
    return dict(sorted(Counter(layer.inputs[0] for layer in layers if layer.multiplies and layer.inputs).items()))


def products_of(layers: Iterable[EngineLayer], node: str) -> list[EngineLayer]:
    """The matrix products that the ONNX node called `node` became, or has a part in."""
    return [layer for layer in layers if layer.multiplies and node in layer.nodes]
