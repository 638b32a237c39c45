"""Finished engines in the cache: what an engine is a function of, and what is remembered beside its file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_build.cache import make_key, source_hash
from sana_build.engine_jobs import EngineJob
from sana_build.layer_table import EngineLayer, gemm_counts, kernels
from sana_build.precision import GroupRow
from sana_build.tensorrt_build import TensorRTPlan
from sana_runtime.manifest import sha256

if TYPE_CHECKING:
    from sana_export.checkpoint import Checkpoint
    from sana_export.configs import ModelConfig
    from sana_quant.calibration import Calibration

PLAN = "engine.plan"
LAYERS = "layers.json"
RECORD = "record.json"

EXPORTERS = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers")
KERNEL_COMPILER = "triton"
NATIVE_CORE = "sana_kernels.naive"


@dataclass(frozen=True)
class EngineRecord:
    """A finished engine: the library it was built with, its tensors, size, hash, what its layers are, and cost."""

    library: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    bytes: int
    sha256: str
    modified: int
    rows: tuple[GroupRow, ...]
    kernels: int
    gemms: dict[str, int]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> "EngineRecord | None":
        """The record of a cached engine, or None if its file is no longer the one that was written."""
        raw = json.loads((folder / RECORD).read_text())
        record = cls(**{**raw, "rows": tuple(GroupRow(**row) for row in raw["rows"])})
        stat = (folder / PLAN).stat()
        # Repositories share the file by hard links, so an edit there would come back with the next build.
        return record if (stat.st_size, stat.st_mtime_ns) == (record.bytes, record.modified) else None


def write_record(folder: Path, plan: TensorRTPlan, rows: list[GroupRow], seconds: float) -> EngineRecord:
    """Complete a folder that holds the engine file; returns what it wrote."""
    file = folder / PLAN
    file.chmod(0o444)
    stat = file.stat()
    record = EngineRecord(
        library=plan.version,
        inputs=plan.inputs,
        outputs=plan.outputs,
        bytes=stat.st_size,
        sha256=sha256(file),
        modified=stat.st_mtime_ns,
        rows=tuple(rows),
        kernels=len(list(kernels(plan.layers))),
        gemms=gemm_counts(plan.layers),
        seconds=seconds,
    )
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=1))
    (folder / LAYERS).write_text(json.dumps([_row(layer) for layer in plan.layers], indent=0))
    return record


def _row(layer: EngineLayer) -> dict[str, Any]:
    return {"name": layer.name, "type": layer.type, "inputs": layer.inputs, "nodes": layer.nodes}


def graph_key(model: "ModelConfig", checkpoint: "Checkpoint", calibration: "Calibration | None", job: EngineJob) -> str:
    """What the graph of a job is a function of."""
    amax = calibration.amax if calibration else {}
    # Native operators come from the plain form of the core, a plugin's kernels from all of the package.
    core, packages = ("sana_kernels", (*EXPORTERS, KERNEL_COMPILER)) if job.cores else (NATIVE_CORE, EXPORTERS)
    return make_key(
        weights=checkpoint.identity(),
        model=asdict(model),
        graph=f"{job.stage}/{job.variant}",
        # A node of our plugin names the architectures that its kernels are compiled for.
        gdn=[job.gdn, job.sms if job.cores else ()],
        wanted=[asdict(entry) for entry in job.wanted],
        amax={entry.path: amax.get(entry.path) for entry in job.wanted if entry.narrow},
        program=[source_hash(name) for name in ("sana_export", "sana_quant", core)],
        versions={package: version(package) for package in packages},
    )


def engine_key(graph: str, sms: Sequence[int], backend: str, library: str) -> str:
    """What an engine is a function of; `graph` is the key of its graph, `library` a version."""
    modules = ("tensorrt_build", "layer_table", "precision", "gdn_plugin")
    program = [source_hash(f"sana_build.{module}") for module in modules]
    return make_key(graph=graph, sms=sms, backend=backend, library=library, program=program)
