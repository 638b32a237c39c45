"""The GDN operator as one node of an exported ONNX graph, which TensorRT maps to the plugin (plugin.py)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sana_kernels import node
from sana_kernels.naive import State


def gdn_node(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_rot: Tensor,
    k_rot: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: State | None,
    *,
    precision: str,
    architectures: Sequence[int],
) -> tuple[Tensor, State]:
    """In the place of naive.gdn while a graph is exported; outside of an export it computes nothing.

    The engine will hold kernels for `architectures` (SM numbers). In bf16, tokens cross the node in that type as well.
    """
    token_type = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = [tensor.to(token_type) for tensor in (q, k, v, q_rot, k_rot, beta)]
    inputs = (*tokens, decay, *(state or ()))
    out, kv, z = torch.onnx.ops.symbolic_multi_out(
        f"{node.DOMAIN}::{node.NAME}",
        inputs,
        {"precision": precision, "architectures": list(architectures)},
        dtypes=(token_type, torch.float32, torch.float32),
        shapes=node.output_shapes([tensor.shape for tensor in inputs]),
        version=int(node.VERSION),
    )
    return out.to(v.dtype), State(kv, z)
