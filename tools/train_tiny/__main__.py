"""The whole training in one command, `python -m train_tiny --work out/tiny`, in stages that are read back when done."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from sana_export.dit import DiT
from sana_export.text import TextEncoder
from sana_export.vae import VAE
from train_tiny import storage
from train_tiny.collect import collect
from train_tiny.decoder_stage import train_decoder
from train_tiny.dit_stage import SIZES, train_dit
from train_tiny.evaluate import Judge
from train_tiny.model import MODEL
from train_tiny.object_stage import train_objects
from train_tiny.optim import Points
from train_tiny.pictures import build_bank
from train_tiny.rollout import Editor, adapt_model
from train_tiny.stream_stage import BATCH, SHORTEST, train_stream
from train_tiny.streams import PromptBook, World
from train_tiny.vae_stage import new_vae, train_vae

SEED = 7
HEAD_START = 60.0
"""Seconds in which the VAE stage has the GPU to itself: it chooses its kernels by timing them."""

SAMPLE = 0.02
"""Share of the pictures that a stage needs which learns nothing."""

MINUTES = {
    "vae": 7.0,
    "dit": 7.7,
    "objects": 8.0,
    "stream": 9.5,
    "decoder": 3.0,
    "judge": 0,
    "ablation": 9.5,
    "compile": 0,
}
"""How long every stage takes, beside some seconds to start and to write."""

CHAIN = ("vae", "dit", "objects", "stream", "decoder", "judge")
"""The stages that make and measure the checkpoint."""


class Work:
    """The files of one training in one folder, and what every stage needs from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        adapt_model()
        self.data = dict(np.load(folder / "data.npz"))

    def path(self, stage: str) -> Path:
        return self.folder / stage

    def book(self) -> PromptBook:
        return PromptBook(self.data, self.device)

    def clip(self) -> Tensor:
        return torch.from_numpy(self.data["clip"]).to(self.device)

    def world(self, stage: str) -> World:
        seed = SEED + list(MINUTES).index(stage)
        torch.manual_seed(seed)
        return World(build_bank(self.data, self.device), seed, MODEL.geometry)

    def vae(self, stage: str) -> VAE:
        return storage.read_vae(self.path(stage)).to(self.device)

    def editor(self, stage: str) -> Editor:
        return Editor(*storage.read_editor(self.path(stage)), MODEL.geometry).to(self.device).eval()

    def judge(self, stage: str, vae: str) -> Judge:
        return Judge(self.editor(stage), self.vae(vae), self.book(), self.clip())

    def keep_vae(self, stage: str, vae: VAE, curve: Points) -> None:
        """What a stage has trained, which is its end."""
        storage.write_vae(self.path(stage), vae)
        self.log(f"{stage}_curve", curve)

    def keep_editor(self, stage: str, dit: DiT, text: TextEncoder, curve: Points) -> None:
        """The same of a stage that trains both."""
        storage.write_editor(self.path(stage), dit, text, self.folder / "tokenizer.json")
        self.log(f"{stage}_curve", curve)

    def log(self, name: str, content: Any) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def run_vae(work: Work, minutes: float) -> None:
    work.keep_vae("vae", *train_vae(work.world("vae"), minutes, SEED))


def run_dit(work: Work, minutes: float) -> None:
    work.keep_editor("dit", *train_dit(work.world("dit"), work.vae("vae"), work.book(), minutes, SEED))


def run_objects(work: Work, minutes: float) -> None:
    parts = storage.read_editor(work.path("dit"))
    trained = train_objects(work.world("objects"), work.vae("vae"), work.book(), parts, minutes)
    work.keep_editor("objects", *trained)


def run_stream(work: Work, minutes: float, name: str = "stream", cycle: bool = True) -> None:
    parts = storage.read_editor(work.path("objects"))
    trained = train_stream(work.world("stream"), work.vae("vae"), work.book(), parts, minutes, cycle)
    work.keep_editor(name, *trained)


def run_decoder(work: Work, minutes: float) -> None:
    world, book = work.world("decoder"), work.book()
    work.keep_vae("decoder", *train_decoder(world, work.vae("vae"), work.editor("stream"), book, minutes))


def run_compile(work: Work, minutes: float) -> None:
    """Make the steps of all stages of the DiT once: they will find their kernels in the compiler's cache."""
    world = World(build_bank(work.data, work.device, SAMPLE), SEED, MODEL.geometry)
    vae, book = new_vae(SEED, work.device), work.book()
    few = replace(SIZES, pool=SIZES.batch, still_pool=SIZES.stills)
    dit, text, _ = train_dit(world, vae, book, minutes, SEED, few)
    dit, text, _ = train_objects(world, vae, book, (dit, text), minutes, size=SIZES.stills)
    train_stream(world, vae, book, (dit, text), minutes, sizes={SHORTEST: BATCH})


def run_ablation(work: Work, minutes: float) -> None:
    """The stream stage once more, without cycle-reverse, and what that is worth."""
    run_stream(work, minutes, "no_cycle", cycle=False)
    log_streams(work, "no_cycle")


def log_streams(work: Work, stage: str) -> None:
    """What an editor is worth on generated scenes with the decoder of stage 1."""
    judge = work.judge(stage, "vae")
    work.log(f"{stage}_streams", {"procedural": judge.table(real=False), "drift": judge.drift()})


def run_judge(work: Work, _minutes: float) -> None:
    """Put the parts together and measure what they are worth offline."""
    release(work)
    log_streams(work, "stream")
    judge = work.judge("stream", "decoder")
    vae = judge.vae_psnr()
    print({"vae": vae}, flush=True)
    tables = {"real": judge.table(real=True), "procedural": judge.table(real=False)}
    drift, zeroed = judge.drift(), judge.drift(forget=True)
    state = {"carried": drift[: len(zeroed)], "zeroed": zeroed}
    choice = judge.choice()
    print({"choice": choice}, flush=True)
    read = {"misread": judge.misread(), "choice": choice}
    figures = {"vae": vae, **tables, "drift": drift, "state": state, **read}
    work.log("quality", figures)
    judge.sheet(work.folder / "sheet.jpg")


def release(work: Work) -> None:
    """Put the parts together in the released layout, in the folder `tiny`."""
    for stage in ("decoder", "stream"):
        shutil.copytree(work.path(stage), work.path("tiny"), dirs_exist_ok=True)


STAGES: dict[str, Callable[[Work, float], None]] = {
    "vae": run_vae,
    "dit": run_dit,
    "objects": run_objects,
    "stream": run_stream,
    "decoder": run_decoder,
    "judge": run_judge,
    "ablation": run_ablation,
    "compile": run_compile,
}


def main(
    work: Annotated[Path, typer.Option(help="Folder for the data, the stages and the logs.")],
    stage: Annotated[str, typer.Option(help=f"One of {', '.join(MINUTES)}; the first six, in turn, if empty.")] = "",
    minutes: Annotated[float, typer.Option(help="Length of the stage; 0 for its own.")] = 0,
) -> None:
    """Train the tiny checkpoint. A stage that has been done is read back by the next one, not done again."""
    if not (work / "data.npz").exists():
        collect(work / "data.npz")
    if stage:
        STAGES[stage](Work(work), minutes or MINUTES[stage])
        return
    for name in CHAIN:
        if not (work / f"{name}_curve.json").exists():
            run_alone(work, name)


def run_alone(work: Path, stage: str) -> None:
    """A stage in a process of its own, which leaves nothing on the GPU; beside the VAE, the next three are compiled."""
    running = start(work, stage)
    if stage == "vae" and torch.cuda.is_available():
        time.sleep(HEAD_START)
        start(work, "compile")
    if code := running.wait():
        raise typer.Exit(code)


def start(work: Path, stage: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "train_tiny", "--work", str(work), "--stage", stage])


if __name__ == "__main__":
    typer.run(main)
