"""The released folder layout, on disk or in a hub repository: which file is which part of a model (spec 8)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sana_export.configs import ModelConfig
from sana_export.tensor_files import INDEX, READERS
from sana_runtime.errors import CheckpointError

RANDOM = "random:"
SHIPPED = "shipped:"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

DIT_FOLDER = "dit"
DIT_NAMES = {True: "sana_streaming_ar", False: "sana_bidirectional_short"}
CAUSAL_VAE, SYMMETRIC_VAE = "ltx2_causal_vae_0516", "vae"
TEXT_FOLDER = "text_encoder"

DIT_PATTERNS = [f"{folder}/*" for folder in (DIT_FOLDER, CAUSAL_VAE, SYMMETRIC_VAE, TEXT_FOLDER)]
VAE_PATTERNS = [f"{folder}/*" for folder in (CAUSAL_VAE, SYMMETRIC_VAE)]
TEXT_PATTERNS = ["*.json", "*.safetensors"]


@dataclass(frozen=True)
class Parts:
    """The transformer file, and the folders of the VAE and the text encoder with their weight files."""

    dit: Path
    vae: Path
    vae_weights: Path
    text: Path
    text_weights: Path

    @classmethod
    def released(cls, root: Path, model: ModelConfig) -> "Parts":
        """Where the parts of `model` are in a folder that we write."""
        vae, text = root / vae_folders(model)[0], root / TEXT_FOLDER
        dit = root / DIT_FOLDER / f"{DIT_NAMES[model.dit.streaming]}.pth"
        return cls(dit, vae, vae / "diffusion_pytorch_model.safetensors", text, text / "model.safetensors")

    def files(self) -> Iterator[Path]:
        """Every file that the parts consist of, shards included, in a fixed order."""
        yield self.dit
        if self.dit.name.endswith(INDEX):
            yield from sorted(self.dit.parent.glob(f"{self.dit.name.removesuffix(INDEX)}*.safetensors"))
        for folder in (self.vae, self.text):
            yield from sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))


def find_parts(spec: str, model: ModelConfig) -> Parts:
    """The parts of a transformer file, a folder or a hub id; raises CheckpointError for the one that is not there."""
    path = Path(spec)
    if path.is_file():
        root = path.parent.parent if path.parent.name == DIT_FOLDER else path.parent
        return assemble(path, find_vae(root, model), find_text(root), root, model)
    if path.is_dir():
        return assemble(find_dit(path, model), find_vae(path, model), find_text(path), path, model)
    if not HUB_ID.fullmatch(spec):
        raise CheckpointError(
            f"checkpoint {spec} does not exist: "
            f"name a file, a folder, a hub id such as {model.vae_repository}, or {RANDOM}SEED"
        )
    root = download(spec, DIT_PATTERNS)
    vae = find_vae(root, model) or find_vae(download(model.vae_repository, VAE_PATTERNS), model)
    text = find_text(root) or download(model.text_repository, TEXT_PATTERNS)
    return assemble(find_dit(root, model), vae, text, root, model)


def shipped(name: str) -> Path:
    """The folder of weights that came with this package; raises CheckpointError listing the names there are."""
    root = Path(__file__).parent / "checkpoints"
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if name not in names:
        raise CheckpointError(f"no weights called {name!r} came with sana-build: it has {', '.join(names) or 'none'}")
    return root / name


def assemble(dit: Path, vae: Path | None, text: Path | None, root: Path, model: ModelConfig) -> Parts:
    if vae is None:
        raise CheckpointError(
            f"{root} has no VAE folder {' or '.join(vae_folders(model))}: put there the one of {model.vae_repository}"
        )
    if text is None:
        raise CheckpointError(f"{root} has no folder {TEXT_FOLDER}: put there the files of {model.text_repository}")
    for file in (vae / "config.json", text / "config.json", text / "tokenizer.json"):
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist: download the folder again")
    return Parts(dit, vae, find_weights(vae, "diffusion_pytorch_model"), text, find_weights(text, "model"))


def find_dit(root: Path, model: ModelConfig) -> Path:
    """The transformer file below `root`: the only one, or the one with the model's released name."""
    files = sorted(path for path in (root / DIT_FOLDER).glob("*") if path.name.endswith(tuple(READERS)))
    shards = [path for path in files if re.search(r"-\d+-of-\d+\.safetensors$", path.name)]
    candidates = [path for path in files if path not in shards]
    named = [path for path in candidates if path.name.startswith(DIT_NAMES[model.dit.streaming])]
    for choice in (candidates, named):
        if len(choice) == 1:
            return choice[0]
    if candidates:
        raise CheckpointError(
            f"{root / DIT_FOLDER} holds several transformers ({', '.join(path.name for path in candidates)}): "
            f"name the file itself"
        )
    raise CheckpointError(
        f"{root / DIT_FOLDER} holds no {' or '.join(READERS)} file: download {model.checkpoint} there"
    )


def vae_folders(model: ModelConfig) -> tuple[str, str]:
    """Folder names of the VAE, the one that fits the model first."""
    return (CAUSAL_VAE, SYMMETRIC_VAE) if model.vae.decoder_causal else (SYMMETRIC_VAE, CAUSAL_VAE)


def find_vae(root: Path, model: ModelConfig) -> Path | None:
    return next((root / name for name in vae_folders(model) if (root / name).is_dir()), None)


def find_text(root: Path) -> Path | None:
    return root / TEXT_FOLDER if (root / TEXT_FOLDER).is_dir() else None


def find_weights(folder: Path, stem: str) -> Path:
    """The weight file of a diffusers or transformers folder, or the index of its shards."""
    for name in (f"{stem}.safetensors", f"{stem}{INDEX}"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has no {stem}.safetensors: download the folder again")


def download(repository: str, patterns: list[str]) -> Path:
    """A local copy of the matching files of a hub repository; raises CheckpointError if it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{repository} is no file or folder here and cannot be fetched from the hub ({reason}): "
            f"check the name and the network, or download it elsewhere and name the folder"
        ) from error
