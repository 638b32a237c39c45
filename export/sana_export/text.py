"""The text encoder: Gemma-2 up to its final norm, and the fixed texts around an instruction (spec 6)."""

import hashlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model
from transformers.initialization import no_init_weights

from sana_runtime.errors import ConfigError
from sana_runtime.prompts import PromptTokenizer

CHI_LINES = (0, 1, 2, 6, 7)
CHI_SHA256 = "c942097458cb2fb6287b081031b1ed255f4fdad93db204675f514078e36c55da"
NEGATIVE_SHA256 = "a38af16b9506f1c9817a43315c360fdef323c7483ea3b050803c349de9e73d8d"


class TextEncoder(nn.Module):
    """Gemma-2 and the choice of the L positions that the denoiser sees: the first and the last L - 1."""

    def __init__(self, model: Gemma2Model, text_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.text_tokens = text_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """`input_ids` and `attention_mask` int64 (B, N) with N >= L; returns text (B, L, D) and mask (B, L), FP32."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self._select(hidden).float(), self._select(attention_mask).float()

    def _select(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, x.shape[1] - self.text_tokens + 1 :]], dim=1)


def gemma(fields: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Gemma2Model:
    """A Gemma-2 decoder stack that can be traced, from fields of its `config.json`, its weights to be filled."""
    config = Gemma2Config.from_dict({**fields, "use_cache": False})
    with no_init_weights():
        # The released configuration asks for BF16; precision is the build's choice.
        return Gemma2Model._from_config(config, attn_implementation="eager", dtype=dtype).eval()


def fill_gemma(model: Gemma2Model, seed: int) -> None:
    """Seeded random weights that keep the residual stream at unit scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.normal_(0.0, scale, generator=generator)


def prompt_tokenizer(path: Path, text_tokens: int) -> PromptTokenizer:
    """The tokenizer of instructions, with the chi text in front."""
    return PromptTokenizer(path, chi_prompt(), text_tokens)


def chi_prompt() -> str:
    """The text in front of every instruction, from the installed diffusers; raises ConfigError if it changed there."""
    from diffusers import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    if not isinstance(lines, list) or len(lines) <= max(CHI_LINES):
        raise ConfigError(_changed("chi text"))
    text = "\n".join(lines[index].replace("'", '"') for index in CHI_LINES)
    return _verified("chi text", text, CHI_SHA256)


def negative_prompt() -> str:
    """The default negative prompt of the bidirectional model, from the installed diffusers; raises ConfigError."""
    from diffusers.pipelines.sana_video import pipeline_sana_video

    source = inspect.getsource(pipeline_sana_video)
    found = re.search(r'negative_prompt = "([^"]+)"', source)
    if found is None:
        raise ConfigError(_changed("negative prompt"))
    return _verified("negative prompt", found[1], NEGATIVE_SHA256)


def _verified(what: str, text: str, digest: str) -> str:
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ConfigError(_changed(what))
    return text


def _changed(what: str) -> str:
    import diffusers

    return (
        f"diffusers {diffusers.__version__} no longer holds the {what} that SANA-Streaming was trained with: "
        f"install diffusers 0.42.1"
    )
