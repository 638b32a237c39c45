"""The graphs of one stage in BF16, as TensorRT builds them: weights loaded once, examples in shape alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from sana_export.attention import GDNAttention
from sana_export.checkpoint import Checkpoint
from sana_export.configs import ModelConfig
from sana_export.graphs import Graph, denoiser_graphs, text_graph, vae_graphs
from sana_export.text import prompt_tokenizer
from sana_export.vae_layers import TemporalConv
from sana_kernels.naive import gdn
from sana_runtime.errors import choose

ANY_PROMPT = "an instruction"
"""Every instruction has the same number of tokens, so any serves as an example."""


GDN_FORMS = {"native": None, "plugin-bf16": "bf16", "plugin-tf32": "tf32", "plugin-fp32": "fp32"}
"""How a GDN core is written, and the precision of our plugin's products if it is one node for that."""


def engine_graphs(stage: str, model: ModelConfig, checkpoint: Checkpoint) -> Iterator[Graph]:
    """Every variant of `stage` in the order first, steady (denoiser: prompt, first, steady).

    Raises ConfigError for an unknown stage, and what the checkpoint's loads raise.
    """
    return choose("stage", stage, STAGES)(model, checkpoint)


def write_gdn_as(form: str, architectures: Sequence[int], module: nn.Module) -> None:
    """Export every GDN core of `module` in `form` from now on: native operators, or one node for our plugin.

    The plugin's node has its kernels compiled for `architectures` (SM numbers) when an engine is built of it. Raises
    ConfigError for an unknown form.
    """
    precision = choose("GDN form", form, GDN_FORMS)
    core: Callable = gdn
    if precision:
        from sana_kernels.onnx_plugin import gdn_node

        core = partial(gdn_node, precision=precision, architectures=tuple(architectures))
    for part in module.modules():
        if isinstance(part, GDNAttention):
            part.core = core


def _text(model: ModelConfig, checkpoint: Checkpoint) -> Iterator[Graph]:
    tokenizer = prompt_tokenizer(checkpoint.tokenizer_path(), model.dit.text_tokens)
    yield text_graph(checkpoint.load_text(model, torch.bfloat16), tokenizer.encode(ANY_PROMPT))


def _vae(stage: str, model: ModelConfig, checkpoint: Checkpoint) -> Iterator[Graph]:
    vae = checkpoint.load_vae(model.vae, torch.bfloat16)
    for module in vae.modules():
        if isinstance(module, TemporalConv):
            module.stacked = False
    return (graph for graph in vae_graphs(vae, model.geometry, Graph.outline) if graph.stage == stage)


def _denoiser(model: ModelConfig, checkpoint: Checkpoint) -> Iterator[Graph]:
    dit = checkpoint.load_dit(model.dit, torch.bfloat16)
    text = torch.zeros(1, model.dit.text_tokens, model.dit.caption_width)
    return denoiser_graphs(dit, model, text, torch.ones(1, model.dit.text_tokens), Graph.outline)


STAGES: dict[str, Callable[[ModelConfig, Checkpoint], Iterator[Graph]]] = {
    "text_encoder": _text,
    "vae_encoder": partial(_vae, "vae_encoder"),
    "denoiser": _denoiser,
    "vae_decoder": partial(_vae, "vae_decoder"),
}
