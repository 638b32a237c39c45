"""Instructions to token ids: fixed length, nothing cut in silence."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sana_runtime.errors import RepositoryError, RequestError
from sana_runtime.prompts import MAX_CHARACTERS, PromptTokenizer

CHI = "edit : "
PAD, BOS = 0, 2


def write_words(path: Path, bos: bool = True) -> Path:
    """A tokenizer of whole words, with Gemma's special tokens."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "edit", ":", "make", "it", "snow", "motion", "score", "10", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.save(str(path))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> PromptTokenizer:
    return PromptTokenizer(write_words(tmp_path / "tokenizer.json"), CHI, text_tokens=8)


def test_ids_are_chi_then_prompt_then_padding(tokenizer: PromptTokenizer) -> None:
    ids, mask = tokenizer.encode("make it snow")
    assert ids.tolist() == [[BOS, 4, 5, 6, 7, 8, PAD, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64
    assert tokenizer.chi_tokens == 3
    assert ids.shape == (1, tokenizer.length) == (1, 3 + 8 - 2)


def test_bytes_and_surrounding_space_do_not_matter(tokenizer: PromptTokenizer) -> None:
    plain, _ = tokenizer.encode("make it snow")
    assert np.array_equal(tokenizer.encode(b"  make it snow\n")[0], plain)


def test_a_prompt_that_just_fits_is_whole_and_one_more_token_is_refused(tokenizer: PromptTokenizer) -> None:
    ids, mask = tokenizer.encode("snow " * 6)
    assert ids[0, 3:].tolist() == [8] * 6
    assert mask.all()
    with pytest.raises(RequestError, match="has 7 tokens and 6 fit"):
        tokenizer.encode("snow " * 7)


def test_motion_score_is_a_suffix(tokenizer: PromptTokenizer) -> None:
    ids, _ = tokenizer.encode("snow", motion_score=10)
    assert ids.tolist() == [[BOS, 4, 5, 8, 9, 10, 5, 11, 12]]
    assert np.array_equal(tokenizer.encode("snow", motion_score=0)[0], tokenizer.encode("snow")[0])


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        (b"", "is empty"),
        (b"make \xff it", "not valid UTF-8"),
        ("make \ud800 it", "not valid UTF-8"),
        ("x" * (MAX_CHARACTERS + 1), "4097 characters and 4096 are allowed"),
    ],
)
def test_unusable_prompts_are_refused(tokenizer: PromptTokenizer, prompt: str | bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        tokenizer.encode(prompt)


def test_negative_prompt_has_no_chi_and_is_cut(tokenizer: PromptTokenizer) -> None:
    ids, mask = tokenizer.encode_negative("snow")
    assert ids.tolist() == [[BOS, 8, PAD, PAD, PAD, PAD, PAD, PAD]]
    assert mask.sum() == 2
    ids, mask = tokenizer.encode_negative("snow " * 20)
    assert ids.tolist() == [[BOS, *[8] * 7]]
    assert mask.all()
    assert tokenizer.encode_negative("")[0][0, 0] == BOS


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path: Path) -> None:
    path = write_words(tmp_path / "tokenizer.json")
    raw = Tokenizer.from_file(str(path))
    raw.enable_truncation(2)
    raw.enable_padding(length=40)
    raw.save(str(path))
    assert PromptTokenizer(path, CHI, text_tokens=8).encode("make it snow")[1].sum() == 6


def test_unusable_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="adds no <bos>"):
        PromptTokenizer(write_words(tmp_path / "plain.json", bos=False), CHI, 8)
    (tmp_path / "broken.json").write_text('{"model"')
    for name in ("broken.json", "absent.json"):
        with pytest.raises(RepositoryError, match="cannot be read"):
            PromptTokenizer(tmp_path / name, CHI, 8)
