"""The graphs of one stage in BF16, as TensorRT builds them: weights loaded once, examples in shape alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from sana_export.attention import GDNAttention
from sana_export.checkpoint import Checkpoint
from sana_export.configs import ModelConfig
from sana_export.dit import DiT
from sana_export.graphs import Graph, denoiser_graphs, text_graph, vae_graphs
from sana_export.text import prompt_tokenizer
from sana_export.vae_layers import TemporalConv
from sana_runtime.errors import choose

ANY_PROMPT = "an instruction"
"""Every instruction has the same number of tokens, so any serves as an example."""


GDN_FORMS = {"native": None, "plugin-bf16": "bf16", "plugin-tf32": "tf32", "plugin-fp32": "fp32"}
"""How a GDN core is written, and the precision of our plugin's products if it is one node for that."""


def engine_graphs(
    stage: str, model: ModelConfig, checkpoint: Checkpoint, gdn: str = "native", architectures: Sequence[int] = ()
) -> Iterator[Graph]:
    """Every variant of `stage` in the order first, steady (denoiser: prompt, first, steady).

    An engine with our plugin holds its kernels for `architectures` (SM numbers). Raises ConfigError for an unknown
    stage or form, and what the checkpoint's loads raise.
    """
    precision = choose("GDN form", gdn, GDN_FORMS)
    if stage != "denoiser" or precision is None:
        return choose("stage", stage, STAGES)(model, checkpoint)
    return _denoiser(model, checkpoint, partial(use_gdn_plugin, precision=precision, architectures=architectures))


def use_gdn_plugin(dit: DiT, precision: str, architectures: Sequence[int]) -> None:
    """Export every GDN core of `dit` as one node for our TensorRT plugin, in place of native operators."""
    from sana_kernels.onnx_plugin import gdn_node

    for module in dit.modules():
        if isinstance(module, GDNAttention):
            module.core = partial(gdn_node, precision=precision, architectures=tuple(architectures))


def _text(model: ModelConfig, checkpoint: Checkpoint) -> Iterator[Graph]:
    tokenizer = prompt_tokenizer(checkpoint.tokenizer_path(), model.dit.text_tokens)
    yield text_graph(checkpoint.load_text(model, torch.bfloat16), tokenizer.encode(ANY_PROMPT))


def _vae(stage: str, model: ModelConfig, checkpoint: Checkpoint) -> Iterator[Graph]:
    vae = checkpoint.load_vae(model.vae, torch.bfloat16)
    for module in vae.modules():
        if isinstance(module, TemporalConv):
            module.stacked = False
    return (graph for graph in vae_graphs(vae, model.geometry, Graph.outline) if graph.stage == stage)


def _denoiser(
    model: ModelConfig, checkpoint: Checkpoint, prepare: Callable[[DiT], None] = lambda dit: None
) -> Iterator[Graph]:
    dit = checkpoint.load_dit(model.dit, torch.bfloat16)
    prepare(dit)
    text = torch.zeros(1, model.dit.text_tokens, model.dit.caption_width)
    return denoiser_graphs(dit, model, text, torch.ones(1, model.dit.text_tokens), Graph.outline)


STAGES: dict[str, Callable[[ModelConfig, Checkpoint], Iterator[Graph]]] = {
    "text_encoder": _text,
    "vae_encoder": partial(_vae, "vae_encoder"),
    "denoiser": _denoiser,
    "vae_decoder": partial(_vae, "vae_decoder"),
}
