"""The text encoder: the positions it keeps, its export, and the texts taken from diffusers."""

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from sana_export.configs import TINY
from sana_export.text import TextEncoder, chi_prompt, fill_gemma, gemma, negative_prompt, prompt_tokenizer
from sana_export.tiny_tokenizer import write_tiny_tokenizer
from sana_runtime.errors import ConfigError

TOKENS, LENGTH = 12, 20
VOCABULARY = TINY.text.gemma["vocab_size"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    model = gemma(TINY.text.gemma)
    fill_gemma(model, 0)
    return TextEncoder(model, TOKENS).eval()


def prompt(real: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(LENGTH) < real).long()[None]
    return ids * mask, mask


@torch.inference_mode()
def test_keeps_the_first_and_last_positions(encoder: TextEncoder) -> None:
    ids, mask = prompt(15)
    text, kept = encoder(ids, mask)
    hidden = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert text.shape == (1, TOKENS, TINY.dit.caption_width)
    assert torch.equal(text[:, 0], hidden[:, 0])
    assert torch.equal(text[:, 1:], hidden[:, LENGTH - TOKENS + 1 :])
    assert kept.tolist() == [[1.0] * 7 + [0.0] * 5]
    assert text.dtype == kept.dtype == torch.float32


@torch.inference_mode()
def test_padding_does_not_change_the_prompt(encoder: TextEncoder) -> None:
    ids, mask = prompt(15)
    noisy = torch.where(mask.bool(), ids, 7)
    kept = encoder(ids, mask)[1].bool()
    assert torch.equal(encoder(ids, mask)[0][kept], encoder(noisy, mask)[0][kept])


@torch.inference_mode()
def test_whole_sequence_is_kept_when_it_has_the_final_length(encoder: TextEncoder) -> None:
    ids, mask = (tensor[:, :TOKENS] for tensor in prompt(9))
    text, _ = encoder(ids, mask)
    assert torch.equal(text, encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state)


def test_export_follows_ids_and_mask(encoder: TextEncoder, tmp_path: Path) -> None:
    path = str(tmp_path / "text.onnx")
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["text", "text_mask"]}
    torch.onnx.export(encoder, prompt(20), path, dynamo=True, opset_version=23, verbose=False, **names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for real in (20, 5):
        ids, mask = prompt(real, seed=real)
        with torch.inference_mode():
            text, kept = encoder(ids, mask)
        served = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.abs(served[0] - text.numpy()).max() / text.abs().max() < 2e-5
        assert np.array_equal(served[1], kept.numpy())


def test_released_configuration_gives_an_fp32_model() -> None:
    released = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "torch_dtype": "bfloat16"}
    legacy = {"rope_theta": 10000.0, "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh"}
    model = gemma({**TINY.text.gemma, **released, **legacy})
    assert model.dtype == torch.float32
    assert model.config.rope_parameters["rope_theta"] == 10000.0


def test_production_encoder_has_the_released_size() -> None:
    with torch.device("meta"):
        model = gemma({})
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_614_341_888
    assert model.config.hidden_size == 2304


def test_fixed_texts_are_the_released_ones() -> None:
    assert [len(line) for line in chi_prompt().split("\n")] == [173, 154, 111, 128, 13]
    assert hashlib.sha256(chi_prompt().encode()).hexdigest().startswith("c9420974")
    assert len(negative_prompt()) == 285


def test_a_changed_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import SanaPipeline

    def call(self: object, complex_human_instruction: list[str] = ["other"] * 8) -> None:
        """Stands for a later diffusers with other words."""

    monkeypatch.setattr(SanaPipeline, "__call__", call)
    with pytest.raises(ConfigError, match="no longer holds the chi text"):
        chi_prompt()


def test_tiny_tokenizer_is_reproducible_and_reads_every_prompt(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    path, again = (write_tiny_tokenizer(folder, VOCABULARY) for folder in folders)
    assert path.read_bytes() == again.read_bytes()
    raw = Tokenizer.from_file(str(path))
    assert raw.get_vocab_size() == VOCABULARY
    assert [raw.token_to_id(token) for token in ("<pad>", "<eos>", "<bos>")] == [0, 1, 2]
    text = "Mach es blau, ça va? 🎉"
    assert raw.decode(raw.encode(text).ids) == text
    tokenizer = prompt_tokenizer(path, TINY.dit.text_tokens)
    for line in (files("sana_export") / "data" / "prompts.txt").read_text().splitlines():
        ids, mask = tokenizer.encode(line)
        assert tokenizer.chi_tokens < mask.sum() < ids.shape[1]


def test_tiny_tokenizer_refuses_a_vocabulary_it_cannot_fill(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens and the model takes 50000"):
        write_tiny_tokenizer(tmp_path, 50000)
