"""A plain client of the ensemble, for tests that look at the server and not at our own client."""

import queue
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

from fakes.tiny_engines import SIZE

ENSEMBLE = "sana_streaming"
INVERT = b"invert"


def frames(index: int, seed: int = 0) -> np.ndarray:
    shape = (1, 33 if index == 0 else 24, SIZE, SIZE, 3)
    return np.random.default_rng([seed, index]).integers(0, 256, shape, np.uint8)


def tensors(pixels: np.ndarray, prompt: bytes) -> list[InferInput]:
    arrays = {"frames": pixels, "prompt": np.frombuffer(prompt, np.uint8)[None]}
    inputs = [InferInput(name, array.shape, np_to_triton_dtype(array.dtype)) for name, array in arrays.items()]
    for item, array in zip(inputs, arrays.values(), strict=True):
        item.set_data_from_numpy(array)
    return inputs


def infer(
    client: InferenceServerClient,
    stream: int | str,
    index: int,
    pixels: np.ndarray | None = None,
    prompt: bytes = INVERT,
    *,
    start: bool | None = None,
    end: bool = False,
    **parameters: Any,
) -> np.ndarray:
    """One chunk, waiting for its answer; the parameter `chunk` is the index unless given."""
    answer = client.infer(
        ENSEMBLE,
        tensors(frames(index) if pixels is None else pixels, prompt),
        sequence_id=stream,
        sequence_start=index == 0 if start is None else start,
        sequence_end=end,
        timeout=parameters.pop("timeout", None),
        parameters={"chunk": index} | parameters,
        client_timeout=30,
    )
    return answer.as_numpy("edited")


def close(client: InferenceServerClient, stream: int | str) -> np.ndarray:
    black = np.zeros((1, 1, SIZE, SIZE, 3), np.uint8)
    return infer(client, stream, 0, black, b" ", start=True, end=True, close=True)


def assert_stream_works(client: InferenceServerClient, stream: int | str) -> None:
    """Two chunks of a stream that begins now; the last one ends it."""
    for index in range(2):
        np.testing.assert_array_equal(infer(client, stream, index, end=index == 1), 255 - frames(index))


class Pipeline:
    """Chunks of any streams sent without waiting, over one gRPC stream; answers come back by request id."""

    def __init__(self, client: InferenceServerClient) -> None:
        self.client, self.sent = client, 0
        self.answers: queue.Queue = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)))

    def send(self, stream: int | str, index: int, pixels: np.ndarray, prompt: bytes, end: bool) -> None:
        flags = {"sequence_id": stream, "sequence_start": index == 0, "sequence_end": end}
        name = f"{stream}/{index}"
        parameters = {"chunk": index}
        inputs = tensors(pixels, prompt)
        self.client.async_stream_infer(ENSEMBLE, inputs, request_id=name, parameters=parameters, **flags)
        self.sent += 1

    def collect(self) -> dict[str, np.ndarray]:
        edited = {}
        for _ in range(self.sent):
            result, error = self.answers.get(timeout=60)
            assert error is None, error
            edited[result.get_response().id] = result.as_numpy("edited")
        self.client.stop_stream()
        return edited
