"""Gathers what training needs besides code: free pictures out of PyPI packages, tokenised prompts, a held-out clip."""

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sana_export.text import chi_prompt, prompt_tokenizer
from sana_export.tiny_tokenizer import write_tiny_tokenizer
from train_tiny.model import MODEL
from train_tiny.phrasings import VARIANTS
from train_tiny.prompts import keys, phrases

LONG_SIDE = 768
VOCABULARY = 1024
CHI_SHARE = 20
"""How often the text before every instruction counts: enough that it does not fall into pieces."""

CLIP = Path("assets/big-buck-bunny.mp4")

PACKAGES = {
    "scikit-image==0.26.0": (
        "skimage/data/",
        "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png "
        "hubble_deep_field.jpg ihc.png retina.jpg rocket.jpg",
    ),
    "scikit-learn==1.9.1": ("sklearn/datasets/images/", "china.jpg flower.jpg"),
    "matplotlib==3.11.2": ("matplotlib/mpl-data/sample_data/", "grace_hopper.jpg"),
    "scipy==1.9.3": ("scipy/misc/", "face.dat"),
}
"""Folder and files inside each wheel; docs/tiny-data.md lists their licences."""


def pictures(folder: Path) -> Iterator[Image.Image]:
    """Every picture of PACKAGES, RGB, downloaded with pip into `folder`."""
    for package, (root, names) in PACKAGES.items():
        target = folder / package
        options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--quiet", "--dest", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
        with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
            for name in names.split():
                yield read_picture(name, wheel.read(root + name))


def read_picture(name: str, content: bytes) -> Image.Image:
    """An RGB picture; scipy's raccoon is bzip2 of raw 768 x 1024 RGB."""
    if name != "face.dat":
        return Image.open(io.BytesIO(content)).convert("RGB")
    import bz2

    return Image.fromarray(np.frombuffer(bz2.decompress(content), np.uint8).reshape(768, 1024, 3))


def compressed(picture: Image.Image) -> np.ndarray:
    """The picture with its long side at most LONG_SIDE, as the bytes of a high-quality JPEG."""
    picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=96, subsampling=0)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def vocabulary_text() -> list[str]:
    """What makes the tokenizer's words: with these, every object, colour and place is made of whole ones."""
    trained = [text for key in keys() for text in phrases(key)]
    return trained + CHI_SHARE * [chi_prompt()]


def token_table(tokenizer: Path) -> dict[str, np.ndarray]:
    """Ids and masks of every phrasing, one row each; `key` and `held_out` say what a row is for."""
    encoder = prompt_tokenizer(tokenizer, MODEL.dit.text_tokens)
    rows = []
    for index, key in enumerate(keys()):
        trained = [variant(text) for text in phrases(key) for variant in VARIANTS]
        rows += [(index, False, *encoder.encode(text)) for text in dict.fromkeys(trained)]
        rows += [(index, True, *encoder.encode(text)) for text in phrases(key, held_out=True)]
    index, held_out, ids, masks = zip(*rows, strict=True)
    return {
        "prompt_key": np.array(index, np.int16),
        "prompt_held_out": np.array(held_out),
        "prompt_ids": np.concatenate(ids).astype(np.int16),
        "prompt_mask": np.concatenate(masks).astype(bool),
    }


def held_out_clip(path: Path) -> np.ndarray:
    """The frames of a 16:9 clip, uint8 (F, H, W, 3), scaled to the model's size with antialiasing."""
    import av

    size = (MODEL.width, MODEL.height)
    with av.open(str(path)) as container:
        frames = [frame.to_image().resize(size, Image.Resampling.BILINEAR) for frame in container.decode(video=0)]
    return np.stack([np.asarray(frame) for frame in frames])


def collect(path: Path) -> None:
    """Write everything to one .npz file at `path`, and the tokenizer beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tiny_tokenizer(path.parent, VOCABULARY, vocabulary_text())
    with tempfile.TemporaryDirectory() as folder:
        shots = {f"picture{i:02d}": compressed(picture) for i, picture in enumerate(pictures(Path(folder)))}
    np.savez_compressed(path, **shots, **token_table(tokenizer), clip=held_out_clip(CLIP))
