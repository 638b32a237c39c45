"""Triton's gRPC messages: the request of a chunk, and what a served ensemble says about itself."""

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from sana_client.errors import ClientError, ModelError, ServerLost
from sana_client.protocol import ChunkRequest, StreamInfo

CALL_SECONDS = 10.0
CHANNEL_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def infer_request(model: str, correlation_id: int, chunk: ChunkRequest, prompt: str) -> pb.ModelInferRequest:
    """The request of one chunk with all but its frames, which a transport adds first."""
    request = pb.ModelInferRequest(model_name=model, id=chunk.id)
    text = prompt.encode()
    request.inputs.add(name="prompt", datatype="UINT8", shape=[1, len(text)])
    request.raw_input_contents.append(text)
    request.parameters["sequence_id"].int64_param = correlation_id
    request.parameters["sequence_start"].bool_param = chunk.start
    request.parameters["sequence_end"].bool_param = chunk.end
    if chunk.close:
        request.parameters["close"].bool_param = True
    else:
        request.parameters["chunk"].int64_param = chunk.index
    return request


def wait_for_slot(request: pb.ModelInferRequest, seconds: float) -> None:
    """Let the server answer instead of queueing `request` for longer than this when all slots are taken."""
    request.parameters["timeout"].int64_param = int(seconds * 1e6)


async def read_info(stub: GRPCInferenceServiceStub, model: str, server: str) -> StreamInfo:
    """Geometry, stages and slots of ensemble `model`; raises ServerLost or ModelError."""
    try:
        config = await _config(stub, model)
        stages = tuple(step.model_name for step in config.ensemble_scheduling.step)
        slots = [_slots(await _config(stub, stage)) for stage in stages]
    except grpc.aio.AioRpcError as error:
        raise _explain_call(error, model, server) from None
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    return StreamInfo.from_parameters(model, parameters, min(filter(None, slots), default=0), stages)


async def read_statistics(stub: GRPCInferenceServiceStub, server: str) -> pb.ModelStatisticsResponse:
    """The server's own counters of every model; raises ServerLost."""
    try:
        return await stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        raise ServerLost(f"{server} went away ({error.details()}): connect again when it is back") from None


async def _config(stub: GRPCInferenceServiceStub, model: str) -> pb.model__config__pb2.ModelConfig:
    return (await stub.ModelConfig(pb.ModelConfigRequest(name=model), timeout=CALL_SECONDS)).config


def _slots(config: pb.model__config__pb2.ModelConfig) -> int:
    instances = sum(group.count for group in config.instance_group) or 1
    return config.sequence_batching.oldest.max_candidate_sequences * instances


def _explain_call(error: grpc.aio.AioRpcError, model: str, server: str) -> ClientError:
    if error.code() == grpc.StatusCode.NOT_FOUND:
        return ModelError(f"{server} has no model {model!r}: name the ensemble with --model")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ServerLost(f"no Triton server answers at {server}: start one, or name its gRPC address with --url")
    return ModelError(f"model {model!r} on {server} cannot be used: {error.details()}")
