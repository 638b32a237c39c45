"""The stages over engines whose tensors are torch's: the same answers as over numpy, and state that stays there."""

from collections.abc import Mapping

import numpy as np
import torch
from test_denoiser import LATENT, MANIFEST, denoise, denoiser_stage

from fakes.engines import FakeEngine, request
from sana_runtime.denoiser import DenoiserStage
from sana_runtime.engine import OneByOne
from sana_runtime.memory import TorchMemory
from sana_runtime.tensors import TensorSpec


class TorchEngine(OneByOne):
    """A fake engine in the memory of torch: notes which of its feeds came from the host."""

    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.inputs = engine, engine.inputs
        self.memory = TorchMemory("cpu")
        self.from_host: set[str] = set()

    def run(self, feeds: Mapping[str, np.ndarray | torch.Tensor]) -> dict[str, torch.Tensor]:
        self.from_host |= {name for name, value in feeds.items() if isinstance(value, np.ndarray)}
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        outputs = self.engine.run(arrays)
        return {name: self.memory.upload(np.ascontiguousarray(value)) for name, value in outputs.items()}


def torch_stage() -> DenoiserStage:
    engines = {name: TorchEngine(engine) for name, engine in denoiser_stage().engines.items()}  # type: ignore[arg-type]
    return DenoiserStage(engines, MANIFEST)


def test_a_stream_is_the_same_in_both_memories() -> None:
    ours, theirs = torch_stage(), denoiser_stage()
    for index, text in enumerate((0.5, 0.5, 0.25, 0.25)):
        options = {"parameters": {"seed": 7}, "end": index == 3}
        latent = denoise(ours, index, text, **options)
        assert isinstance(latent, np.ndarray)
        np.testing.assert_array_equal(latent, denoise(theirs, index, text, **options))


def test_state_and_prompt_never_leave_the_engines_memory() -> None:
    stage = torch_stage()
    for index in range(3):
        denoise(stage, index)
    assert stage.engines["steady"].from_host == {"source", "timestep", "frame_start", "recent_valid"}
    state = stage.sessions._sessions["7"].state
    assert state is not None
    assert all(isinstance(value, torch.Tensor) for value in state.carried.values())


def test_torch_streams_are_isolated() -> None:
    alone = [denoise(stage, index) for stage in [torch_stage()] for index in range(3)]
    stage = torch_stage()
    mixed = []
    for index in range(3):
        mixed.append(denoise(stage, index, correlation="a"))
        denoise(stage, index, 9.0, correlation="b", parameters={"seed": 2})
    np.testing.assert_array_equal(np.concatenate(mixed, 2), np.concatenate(alone, 2))


def test_a_request_that_closes_needs_no_engine() -> None:
    closing = request(0, end=True, parameters={"close": True})
    assert torch_stage().run(closing)["latent"].shape[1] == LATENT["first"][1]
