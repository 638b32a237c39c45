"""From an instruction to token ids: the fixed system text in front, a fixed length, nothing cut in silence (spec 6)."""

from functools import cached_property
from pathlib import Path

import numpy as np

from sana_runtime.errors import RepositoryError, RequestError

MAX_CHARACTERS = 4096

Tokens = tuple[np.ndarray, np.ndarray]
"""input_ids and attention_mask (1 = token, 0 = padding), both int64 (1, N)."""


class PromptTokenizer:
    """Reads a `tokenizer.json` with a leading <bos>; `chi` is the system text in front of every instruction.

    `text_tokens` is L, how many positions the denoiser sees: <bos>, the last token of `chi` and L - 2 of the
    instruction, so the ids are N = n_chi + L - 2 long. Raises RepositoryError for an unusable tokenizer.
    """

    def __init__(self, path: Path, chi: str, text_tokens: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise RepositoryError(f"tokenizer {path} cannot be read ({error}): build or download it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pad = self._tokenizer.token_to_id("<pad>")
        if self._pad is None or self._ids("")[:1] != [self._tokenizer.token_to_id("<bos>")]:
            raise RepositoryError(f"tokenizer {path} has no <pad> or adds no <bos>: it is not a Gemma tokenizer")
        self.chi = chi
        self.text_tokens = text_tokens

    @cached_property
    def chi_tokens(self) -> int:
        return len(self._ids(self.chi))

    @property
    def length(self) -> int:
        """N of every encoded instruction."""
        return self.chi_tokens + self.text_tokens - 2

    def encode(self, prompt: str | bytes, motion_score: int = 0) -> Tokens:
        """Token ids of `chi` and the instruction, padded on the right; a motion score of 0 adds no suffix.

        Raises RequestError for an instruction that is blank, not UTF-8, too long, or of more tokens than fit.
        """
        ids = self._ids(self.chi + with_motion_score(checked(prompt), motion_score))
        if len(ids) > self.length:
            raise RequestError(
                f"the prompt has {len(ids) - self.chi_tokens} tokens and {self.text_tokens - 2} fit: shorten it"
            )
        return self._padded(ids, self.length)

    def encode_negative(self, prompt: str) -> Tokens:
        """Token ids of a negative prompt, without `chi`, padded or cut to L as the offline sampler does."""
        return self._padded(self._ids(prompt.strip())[: self.text_tokens], self.text_tokens)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def _padded(self, ids: list[int], length: int) -> Tokens:
        input_ids = np.full((1, length), self._pad, dtype=np.int64)
        input_ids[0, : len(ids)] = ids
        return input_ids, (np.arange(length) < len(ids)).astype(np.int64)[None]


def checked(prompt: str | bytes) -> str:
    """The instruction without surrounding white space; raises RequestError if no model could follow it."""
    try:
        text = prompt.decode() if isinstance(prompt, bytes) else prompt.encode().decode()
    except UnicodeError:
        raise RequestError("the prompt is not valid UTF-8 text: send it encoded as UTF-8") from None
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"the prompt has {len(text)} characters and {MAX_CHARACTERS} are allowed: shorten it")
    if not text.strip():
        raise RequestError("the prompt is empty: say what to change in the video")
    return text.strip()


def with_motion_score(prompt: str, score: int) -> str:
    """The instruction with the bidirectional model's motion suffix, if the score is positive."""
    return f"{prompt} motion score: {score}." if score > 0 else prompt
