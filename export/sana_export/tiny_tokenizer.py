"""A small tokenizer with Gemma's special tokens, for models whose vocabulary is too small for Gemma's own."""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from sana_runtime.errors import ConfigError

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>"]


def write_tiny_tokenizer(directory: Path, vocab_size: int, sentences: Iterable[str] = ()) -> Path:
    """Train a byte-level BPE tokenizer on our prompts, the chi text and more; returns `directory/tokenizer.json`.

    The same file comes out every time: words that `sentences` use often become one token. Raises ConfigError if the
    text does not yield `vocab_size` tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_sentences(), *sentences], trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens and the model takes {vocab_size}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIAL_TOKENS.index("<bos>"))]
    )
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _sentences() -> list[str]:
    from sana_export.text import chi_prompt

    return [*(files("sana_export") / "data" / "prompts.txt").read_text().splitlines(), chi_prompt()]
