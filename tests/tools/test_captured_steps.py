"""Training steps ask nothing of the host, or no CUDA graph could record them: seen without a GPU, on tensors without
values, where a copy from or to the CPU cannot happen unnoticed."""

import ast
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sana_export import attention, vae, vae_layers
from sana_export import dit as dit_module
from sana_export.dit import DiT
from sana_export.vae import VAE

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from train_tiny.decoder_stage import decoder_step
from train_tiny.dit_stage import Lesson, dit_step
from train_tiny.model import MODEL
from train_tiny.object_stage import object_step
from train_tiny.rollout import Editor, adapt_model, empty_memory
from train_tiny.storage import new_text
from train_tiny.stream_stage import Teacher

TRAINING = Path(__file__).parents[2] / "tools" / "train_tiny"
STEP_FILES = ("dit_stage", "object_stage", "stream_stage", "decoder_stage", "rollout", "vae_stage")


ADAPTED = ((attention, "gdn"), (vae, "channel_norm"), (vae_layers, "channel_norm"), (dit_module, "sinusoid"))
"""What `adapt_model` replaces; put back after each test."""


class Alone(TorchDispatchMode):
    """Refuses operations that read a value, or that mix in a tensor of the CPU."""

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if function is torch.ops.aten._local_scalar_dense.default or any(not x.is_meta for x in tensors):
            raise AssertionError(f"{function} asks the host")
        return function(*args, **kwargs)


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Editor]:
    """Four blocks of the model that is trained, one of them softmax."""
    with monkeypatch.context() as patch:
        for module, name in ADAPTED:
            patch.setattr(module, name, getattr(module, name))
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        adapt_model()
        yield Editor(DiT(replace(MODEL.dit, depth=4)), new_text(), MODEL.geometry).to("meta")


def lesson(frames: int, batch: int = 2) -> Lesson:
    geometry = MODEL.geometry
    shape = (batch, MODEL.dit.latent_channels, frames, geometry.latent_height, geometry.latent_width)
    source, target = (torch.randn(shape, device="meta") for _ in range(2))
    start, whole = (torch.zeros(batch, dtype=dtype, device="meta") for dtype in (torch.int64, torch.bool))
    ids = torch.ones(batch, 40, dtype=torch.int64, device="meta")
    return Lesson(source, target, start, (ids, ids), (ids, ids), whole)


def test_steps_of_the_dit_stage_ask_nothing_of_the_host(editor: Editor) -> None:
    step = dit_step(editor, torch.ones(96, 1, 1, 1, device="meta"))
    with Alone():
        _, memory = step(lesson(5), lesson(3), empty_memory(), lesson(1))
        step(lesson(3), lesson(3), memory, lesson(1))


def test_steps_of_the_object_stage_ask_nothing_of_the_host(editor: Editor) -> None:
    step = object_step(editor, torch.ones(96, 1, 1, 1, device="meta"))
    with Alone():
        step(lesson(1))


def test_steps_of_the_stream_stage_ask_nothing_of_the_host(editor: Editor) -> None:
    teacher = Teacher(editor, torch.ones(96, 1, 1, 1, device="meta"), cycle=True)
    with Alone():
        _, memory, backward = teacher.step(1, lesson(5), lesson(3), empty_memory(), empty_memory())
        teacher.step(1, lesson(3), lesson(3), memory, backward)


@pytest.mark.usefixtures("editor")
def test_steps_of_the_decoder_stage_ask_nothing_of_the_host() -> None:
    decoder = VAE(MODEL.vae).decoder.to("meta")
    with Alone():
        decoder_step(decoder)(torch.randn(1, 96, 3, 4, 4, device="meta"), torch.randn(1, 3, 17, 64, 64, device="meta"))


@pytest.mark.parametrize("name", STEP_FILES)
def test_no_step_assigns_a_number_to_a_place_of_a_tensor(name: str) -> None:
    """On a GPU, and only there, the number comes from the CPU as a tensor of its own."""
    tree = ast.parse((TRAINING / f"{name}.py").read_text())
    found = [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and is_step(function)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
    ]
    assert found == []


def is_step(function: ast.FunctionDef) -> bool:
    """Not what prepares a training, once."""
    return not function.name.startswith(("pass_", "train_", "refresh"))
