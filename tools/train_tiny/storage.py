"""The released checkpoint layout as the only format between stages: what one stage writes, the next one reads."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_export import dit_keys, vae_keys
from sana_export.checkpoint import write_json
from sana_export.dit import DiT
from sana_export.layout import CAUSAL_VAE, DIT_FOLDER, DIT_NAMES, TEXT_FOLDER
from sana_export.tensor_files import read_tensors
from sana_export.text import TextEncoder, gemma
from sana_export.vae import VAE
from train_tiny.model import MODEL

DIT_FILE = Path(DIT_FOLDER) / f"{DIT_NAMES[True]}.safetensors"
VAE_FILE = Path(CAUSAL_VAE) / "diffusion_pytorch_model.safetensors"
TEXT_FILE = Path(TEXT_FOLDER) / "model.safetensors"


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}, path)


def write_vae(folder: Path, vae: VAE) -> None:
    write(folder / VAE_FILE, vae_keys.to_released(vae))
    write_json(folder / CAUSAL_VAE / "config.json", vae_keys.config_to_json(vae.config))


def write_editor(folder: Path, dit: DiT, text: TextEncoder, tokenizer: Path) -> None:
    write(folder / DIT_FILE, dit_keys.to_released(dit.config, dit.state_dict()))
    write(folder / TEXT_FILE, {f"model.{name}": value for name, value in text.model.state_dict().items()})
    write_json(folder / TEXT_FOLDER / "config.json", text.model.config.to_dict())
    shutil.copyfile(tokenizer, folder / TEXT_FOLDER / "tokenizer.json")


def read_vae(folder: Path) -> VAE:
    vae = VAE(MODEL.vae).eval()
    vae.load_state_dict(vae_keys.from_released(floats(folder / VAE_FILE)))
    return vae


def read_editor(folder: Path) -> tuple[DiT, TextEncoder]:
    dit, text = DiT(MODEL.dit), new_text()
    dit.load_state_dict(dit_keys.from_released(MODEL.dit, floats(folder / DIT_FILE)))
    text.model.load_state_dict({key.removeprefix("model."): value for key, value in floats(folder / TEXT_FILE).items()})
    return dit, text


def new_text() -> TextEncoder:
    return TextEncoder(gemma(MODEL.text.gemma or {}), MODEL.dit.text_tokens)


def floats(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in read_tensors(path).items()}
