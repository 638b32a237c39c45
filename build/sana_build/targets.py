"""Deployment targets: what `--gpu` names, which engine backend serves it, and which policies it can run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One kind of machine; `policies` lists what its engines can run, the first being the default."""

    name: str
    title: str
    backend: str
    policies: tuple[str, ...]


TARGETS = {"cpu": Target("cpu", "any x86-64 CPU, onnxruntime", "onnxruntime", ("fp32",))}

POLICIES = {"fp32": "every layer in FP32"}
