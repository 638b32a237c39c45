"""The text encoder on a GPU: a program exported from PyTorch, which runs once per prompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from sana_runtime.engine import OneByOne, check_feeds
from sana_runtime.memory import Array, TorchMemory
from sana_runtime.tensors import TensorSpec


class TextEngine(OneByOne):
    """`input_ids` and `attention_mask` int64 (1, N) to `text` f32 (1, L, D) and `text_mask` f32 (1, L)."""

    def __init__(self, program: Any, memory: TorchMemory, tokens: int, text: Sequence[int]) -> None:
        self.memory, self._program = memory, program
        self.inputs = tuple(TensorSpec(name, "int64", (1, tokens)) for name in ("input_ids", "attention_mask"))
        self.outputs = TensorSpec("text", "float32", (1, *text)), TensorSpec("text_mask", "float32", (1, text[0]))

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raises EngineError naming the tensor that is missing, unknown or misshapen."""
        check_feeds(self.inputs, feeds)
        tensors = [self.memory.as_tensor(feeds[spec.name]) for spec in self.inputs]
        with self.memory.working():
            found = self._program(*tensors)
        return dict(zip(("text", "text_mask"), found, strict=True))

    def warm(self) -> None:
        """Load what the first prompt would wait for."""
        self.run({spec.name: self.memory.zeros(spec) for spec in self.inputs})


def load_text(weights: Path, config: Mapping[str, Any], device: str) -> dict[str, TextEngine]:
    """The exported program at `weights`; `config` holds `tokens`, N, and `text`, (L, D)."""
    exported = torch.export.load(weights)
    program = move_to_device_pass(exported, device).module()
    return {"prompt": TextEngine(program, TorchMemory(device), config["tokens"], config["text"])}
