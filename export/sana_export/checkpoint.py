"""Where a model's weights are and how they get in: released files, a hub repository, or seeded random ones (spec 8)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor

from sana_export import dit_keys, vae_keys
from sana_export.configs import DiTConfig, ModelConfig, VAEConfig
from sana_export.dit import DiT
from sana_export.dtypes import blank
from sana_export.layout import RANDOM, SHIPPED, Parts, find_parts, shipped
from sana_export.random_weights import fill_dit
from sana_export.tensor_files import check_tensors, read_tensors
from sana_export.text import TextEncoder, fill_gemma, gemma
from sana_export.tiny_tokenizer import write_tiny_tokenizer
from sana_export.vae import VAE
from sana_runtime.errors import CheckpointError, ConfigError

__all__ = ["Checkpoint", "FileCheckpoint", "RandomCheckpoint", "check_tensors", "resolve", "write_random"]


class Checkpoint(Protocol):
    """The weights of one model; every load returns a module in evaluation mode, in `dtype`."""

    def describe(self) -> str:
        """One line for a person and for the manifest."""
        ...

    def identity(self) -> str:
        """A key that changes when the weights may have changed."""
        ...

    def check(self, model: ModelConfig) -> None:
        """Refuse weights that do not fit, before any work is done; raises CheckpointError."""
        ...

    def tokenizer_path(self) -> Path:
        """The `tokenizer.json` that belongs to the text encoder."""
        ...

    def load_dit(self, config: DiTConfig, dtype: torch.dtype = torch.float32) -> DiT: ...

    def load_vae(self, config: VAEConfig, dtype: torch.dtype = torch.float32) -> VAE: ...

    def load_text(self, model: ModelConfig, dtype: torch.dtype = torch.float32) -> TextEncoder: ...


def resolve(spec: str, model: ModelConfig) -> Checkpoint:
    """Find the parts of `spec`: a transformer file, a folder in the released layout, a hub id, `random:SEED`, or
    `shipped:NAME` for weights that came with this package.

    Raises CheckpointError naming the part that is not there and where it was looked for.
    """
    if spec.startswith(SHIPPED):
        return FileCheckpoint(spec, find_parts(str(shipped(spec.removeprefix(SHIPPED))), model))
    if not spec.startswith(RANDOM):
        return FileCheckpoint(spec, find_parts(spec, model))
    seed = spec.removeprefix(RANDOM)
    if not seed.isdecimal() or int(seed) >= 1 << 63:
        raise CheckpointError(f"checkpoint {spec!r} has no seed: write {RANDOM}SEED with a whole number below 2^63")
    return RandomCheckpoint(int(seed), model)


@dataclass(frozen=True)
class RandomCheckpoint:
    """Seeded random weights of any architecture, made in memory."""

    seed: int
    model: ModelConfig

    def describe(self) -> str:
        return f"random weights, seed {self.seed}"

    def identity(self) -> str:
        return digest(RANDOM, str(self.seed), json.dumps(asdict(self.model), sort_keys=True))

    def check(self, model: ModelConfig) -> None:
        """Nothing to refuse: made-up weights fit every model."""

    def tokenizer_path(self) -> Path:
        return tiny_tokenizer(vocabulary(self.model))

    def load_dit(self, config: DiTConfig, dtype: torch.dtype = torch.float32) -> DiT:
        dit = blank(lambda: DiT(config), dtype)
        fill_dit(dit, self.seed)
        return dit

    def load_vae(self, config: VAEConfig, dtype: torch.dtype = torch.float32) -> VAE:
        vae = blank(lambda: VAE(config), dtype)
        vae_keys.fill_vae(vae, self.seed)
        return vae

    def load_text(self, model: ModelConfig, dtype: torch.dtype = torch.float32) -> TextEncoder:
        encoder = gemma(gemma_fields(model), dtype)
        fill_gemma(encoder, self.seed)
        return TextEncoder(encoder, model.dit.text_tokens).eval()


@dataclass(frozen=True)
class FileCheckpoint:
    """Weights in released files, read and checked at each load."""

    spec: str
    parts: Parts

    def describe(self) -> str:
        parts = self.parts
        return f"{self.spec} ({parts.dit.name}, VAE {parts.vae.name}, text encoder {parts.text.name})"

    def identity(self) -> str:
        stats = ((path.name, path.stat()) for path in self.parts.files())
        return digest(*(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))

    def check(self, model: ModelConfig) -> None:
        """Read every file but the text encoder's weights; raises CheckpointError for a damaged or a foreign one."""
        self._text_fields(model)
        self._vae_tensors(model.vae)
        self._dit_tensors(model.dit)

    def tokenizer_path(self) -> Path:
        return self.parts.text / "tokenizer.json"

    def load_dit(self, config: DiTConfig, dtype: torch.dtype = torch.float32) -> DiT:
        """Raises CheckpointError for a damaged file or another architecture."""
        dit = blank(lambda: DiT(config), dtype)
        dit.load_state_dict(dit_keys.from_released(config, self._dit_tensors(config)))
        return dit

    def _dit_tensors(self, config: DiTConfig) -> dict[str, Tensor]:
        tensors = read_tensors(self.parts.dit)
        check_kind(self.parts.dit, config, tensors)
        check_tensors(str(self.parts.dit), dit_keys.released_shapes(config), tensors, dit_keys.OPTIONAL)
        return tensors

    def load_vae(self, config: VAEConfig, dtype: torch.dtype = torch.float32) -> VAE:
        """Raises CheckpointError for a damaged file or another architecture."""
        vae = blank(lambda: VAE(config), dtype)
        vae.load_state_dict(vae_keys.from_released(self._vae_tensors(config)))
        return vae

    def _vae_tensors(self, config: VAEConfig) -> dict[str, Tensor]:
        path = self.parts.vae / "config.json"
        check_vae_config(path, config, vae_keys.config_from_json(str(path), read_json(path)))
        tensors = read_tensors(self.parts.vae_weights)
        check_tensors(str(self.parts.vae_weights), vae_keys.released_shapes(config), tensors)
        return tensors

    def load_text(self, model: ModelConfig, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """Raises CheckpointError for a damaged file, or an encoder that is not the Gemma-2 this model was made for."""
        encoder = gemma(self._text_fields(model), dtype)
        # The head that predicts words may be in the file; only what comes before it is used.
        tensors = {
            key: value for key, value in read_tensors(self.parts.text_weights).items() if key != "lm_head.weight"
        }
        expected = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
        check_tensors(str(self.parts.text_weights), expected, tensors)
        encoder.load_state_dict(tensors)
        return TextEncoder(encoder, model.dit.text_tokens).eval()

    def _text_fields(self, model: ModelConfig) -> dict[str, Any]:
        path = self.parts.text / "config.json"
        fields = read_json(path)
        kind, width = fields.get("model_type"), fields.get("hidden_size")
        if kind != "gemma2" or width != model.dit.caption_width:
            raise CheckpointError(
                f"{path} describes a {kind} text encoder of width {width}: "
                f"{model.name} takes a gemma2 of width {model.dit.caption_width}"
            )
        return fields


def check_kind(path: Path, config: DiTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError in one sentence if the file is a transformer of another width, depth or mode."""
    embedder = tensors.get("x_embedder.proj.weight")
    if embedder is not None and embedder.shape[0] != config.hidden:
        raise CheckpointError(
            f"{path} is a transformer of hidden width {embedder.shape[0]}, the model's is {config.hidden}: "
            f"choose the model that the file was made for"
        )
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    if depth and depth != config.depth:
        raise CheckpointError(
            f"{path} is a transformer of {depth} blocks, the model's has {config.depth}: "
            f"choose the model that the file was made for"
        )
    query = tensors.get(f"blocks.{config.softmax_blocks[0]}.attn.q.weight")
    if query is not None and (query.ndim == 3) != config.streaming:
        modes = {True: "streaming", False: "bidirectional"}
        raise CheckpointError(
            f"{path} is a {modes[not config.streaming]} transformer and the model is {modes[config.streaming]}: "
            f"choose the other model or the other file"
        )


def check_vae_config(path: Path, expected: VAEConfig, found: VAEConfig) -> None:
    """Raise CheckpointError naming the fields in which the VAE on disk is not the model's."""
    if found.decoder_causal != expected.decoder_causal:
        modes = {True: "causal (ltx2_causal_vae_0516)", False: "symmetric (LTX-2)"}
        raise CheckpointError(
            f"{path} describes a VAE with a {modes[found.decoder_causal]} decoder: "
            f"the model takes the {modes[expected.decoder_causal]} one"
        )
    ours, theirs = asdict(expected), asdict(found)
    wrong = [
        f"{vae_keys.FIELDS[name]} {theirs[name]} instead of {ours[name]}" for name in ours if ours[name] != theirs[name]
    ]
    if wrong:
        raise CheckpointError(f"{path} describes another VAE than the model's: {', '.join(wrong)}")


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; raises CheckpointError if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a configuration: download it again")
    return content


def write_random(model: ModelConfig, seed: int, directory: Path) -> None:
    """Write a checkpoint in the released layout with the weights of `random:SEED`, one part in memory at a time.

    Raises ConfigError if `directory` holds anything already.
    """
    from safetensors.torch import save_file

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty: name a new folder for the checkpoint")
    source, parts = RandomCheckpoint(seed, model), Parts.released(directory, model)
    for folder in (parts.dit.parent, parts.vae, parts.text):
        folder.mkdir(parents=True)
    released = dit_keys.to_released(model.dit, source.load_dit(model.dit).state_dict())
    torch.save({"state_dict": released}, parts.dit)
    del released
    save_file(vae_keys.to_released(source.load_vae(model.vae)), parts.vae_weights)
    write_json(parts.vae / "config.json", vae_keys.config_to_json(model.vae))
    encoder = source.load_text(model).model
    save_file({f"model.{key}": value for key, value in encoder.state_dict().items()}, parts.text_weights)
    write_json(parts.text / "config.json", encoder.config.to_dict())
    write_tiny_tokenizer(parts.text, vocabulary(model))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def gemma_fields(model: ModelConfig) -> Mapping[str, Any]:
    """The model's own Gemma-2 fields; without any, transformers' defaults, which are those of gemma-2-2b."""
    return model.text.gemma or {}


TINY_VOCABULARY = 1024
"""What our own text can fill; a larger embedding keeps rows that no token uses."""


def vocabulary(model: ModelConfig) -> int:
    return min(gemma_fields(model).get("vocab_size", TINY_VOCABULARY), TINY_VOCABULARY)


@cache
def scratch() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="sana-tokenizer-")


@cache
def tiny_tokenizer(vocab_size: int) -> Path:
    """The tokenizer of a random checkpoint, kept until the process ends."""
    folder = Path(scratch().name) / str(vocab_size)
    folder.mkdir()
    return write_tiny_tokenizer(folder, vocab_size)


def digest(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
