"""The GDN operator as a TensorRT plugin (IPluginV3): kernels compiled while the engine is built, inside the engine.

Register it before parsing, and before an engine that holds it is loaded. Execution in an engine has not been verified:
it needs an RTX card.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_rtx as trt
import tensorrt_rtx_libs as libraries

from sana_kernels import node
from sana_kernels.driver import Kernel, current_architecture, driver
from sana_kernels.errors import KernelError

TYPES = {trt.DataType.FLOAT: "float32", trt.DataType.BF16: "bfloat16"}
NUMPY = {trt.PluginFieldType.INT32: np.int32, trt.PluginFieldType.CHAR: np.int8}


PARTS = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
"""All of them need constructing: one that is not ends the process at the first attribute."""


class Plugin(*PARTS):  # type: ignore[misc]
    """One GDN core. Its `program` is compiled in a build, for `architectures`, and what an engine keeps of it."""

    def __init__(self, precision: str, architectures: Sequence[int], program: node.Program | None = None) -> None:
        for part in PARTS:
            part.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = node.NAME, node.VERSION, ""
        self.num_outputs = len(node.OUTPUTS)
        self.precision, self.architectures, self.program = precision, tuple(architectures), program
        self.kernels: list[Kernel] = []

    def get_capability_interface(self, _kind: Any) -> "Plugin":
        return self

    def clone(self) -> "Plugin":
        return Plugin(self.precision, self.architectures, self.program)

    def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
        return [inputs[2], trt.DataType.FLOAT, trt.DataType.FLOAT]

    def get_output_shapes(self, inputs: Sequence[Any], _shape_inputs: Any, _builder: Any) -> list[Any]:
        return [trt.DimsExprs(shape) for shape in node.output_shapes(inputs)]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        name = (*node.INPUTS[:inputs], *node.OUTPUTS)[position]
        desc = tensors[position].desc
        if desc.format != trt.TensorFormat.LINEAR:
            return False
        if name not in node.TOKENS:
            return bool(desc.type == trt.DataType.FLOAT)
        return desc.type in TYPES and desc.type == tensors[0].desc.type

    def configure_plugin(self, inputs: Sequence[Any], _outputs: Sequence[Any]) -> None:
        """Compile for the shapes of the engine, which are static."""
        if self.program is None:
            descs = [tensor.desc for tensor in inputs]
            problem = node.problem([tuple(desc.dims) for desc in descs], self.precision)
            self.program = node.compile_program(problem, TYPES[descs[0].type], self.architectures)

    def get_workspace_size(self, inputs: Sequence[Any], _outputs: Sequence[Any]) -> int:
        shapes = [tuple(getattr(tensor, "desc", tensor).dims) for tensor in inputs]
        return node.workspace_offsets(node.problem(shapes, self.precision))[1]

    def get_fields_to_serialize(self) -> Any:
        if self.program is None:
            raise KernelError(f"{node.NAME} is serialised before TensorRT told its shapes")
        # A field holds the address of its data and does not keep it.
        self.packed = np.frombuffer(self.program.pack(), np.int8)
        return trt.PluginFieldCollection([trt.PluginField("program", self.packed, trt.PluginFieldType.CHAR)])

    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, _tactic: int) -> None:
        pass

    def on_shape_change(self, _inputs: Any, _outputs: Any) -> None:
        pass

    def attach_to_context(self, _context: Any) -> "Plugin":
        """A copy with its kernels loaded: loading inside enqueue would break a CUDA graph capture."""
        attached = self.clone()
        attached.load()
        return attached

    def load(self) -> None:
        """Load the kernels of the current device. Raises KernelError if the engine holds none for it."""
        library = driver()
        sm = current_architecture(library)
        cubins = self.program.cubins if self.program else {}
        if sm not in cubins:
            known = ", ".join(f"sm_{known}" for known in cubins) or "no architecture"
            raise KernelError(f"{node.NAME} was compiled for {known}, this card is sm_{sm}: build the engine for it")
        self.kernels = [Kernel(library, cubin) for cubin in cubins[sm]]

    def enqueue(
        self, _inputs: Any, _outputs: Any, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        assert self.program is not None
        pointers = dict(zip(node.INPUTS, inputs, strict=False)) | dict(zip(node.OUTPUTS, outputs, strict=True))
        pointers |= {name: workspace + offset for name, offset in self.program.offsets.items()}
        for kernel in self.kernels:
            kernel.launch([pointers[name] for name in kernel.cubin.tensors], stream)


class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
    """Makes plugins from the attributes of an ONNX node, or from what an engine serialised."""

    def __init__(self) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = node.NAME, node.VERSION, ""
        self.field_names = trt.PluginFieldCollection(
            [
                trt.PluginField("precision", np.array([]), trt.PluginFieldType.CHAR),
                trt.PluginField("architectures", np.array([]), trt.PluginFieldType.INT32),
                trt.PluginField("program", np.array([]), trt.PluginFieldType.CHAR),
            ]
        )

    def create_plugin(self, _name: str, fields: Any, _phase: Any) -> Plugin:
        given = {field.name: np.frombuffer(field.data, NUMPY[field.type]) for field in fields}
        if "program" in given:
            program = node.Program.unpack(given["program"].tobytes())
            return Plugin(program.precision, tuple(program.cubins), program)
        precision = given["precision"].tobytes().decode().rstrip("\0")
        return Plugin(precision, given["architectures"].tolist())


LIBRARY = "libtensorrt_rtx.so"
VERSIONED = f"{LIBRARY}.1"


def register() -> None:
    """Make the plugin known to this process; raises KernelError where the ONNX parser could not load it."""
    link_library(Path(libraries.__file__).parent)
    registry = trt.get_plugin_registry()
    if registry.get_creator(node.NAME, node.VERSION, "") is None:
        registry.register_creator(Creator(), "")


def link_library(folder: Path) -> None:
    """Give the library the name by which the parser opens it at the first plugin, which the wheel leaves out.

    Without it the parser ends the process.
    """
    try:
        (folder / LIBRARY).symlink_to(VERSIONED)
    except FileExistsError:
        return
    except OSError as error:
        raise KernelError(
            f"{folder} has no {LIBRARY} and cannot be written ({error.strerror}): link it there to {VERSIONED}"
        ) from error
