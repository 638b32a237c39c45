"""The whole training in one command, `python -m train_tiny --work out/tiny`, in stages that are read back when done."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from train_tiny import storage
from train_tiny.collect import collect
from train_tiny.dit_stage import train_dit
from train_tiny.evaluate import Judge
from train_tiny.model import MODEL
from train_tiny.pictures import build_bank
from train_tiny.rollout import Editor, adapt_model
from train_tiny.stream_stage import train_stream
from train_tiny.streams import PromptBook, World
from train_tiny.vae_stage import train_vae
from train_tiny.words_stage import train_words

SEED = 7
MINUTES = {"vae": 6.9, "dit": 7.4, "stream": 4.5, "words": 0.6, "ablation": 2.5}


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

    def judge(self, stage: str) -> Judge:
        editor = Editor(*storage.read_editor(self.path(stage)), MODEL.geometry).to(self.device).eval()
        return Judge(editor, storage.read_vae(self.path("vae")).to(self.device), self.book(), self.clip())

    def log(self, name: str, content: Any) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def run_vae(work: Work, minutes: float) -> None:
    vae, curve = train_vae(work.world("vae"), minutes, SEED)
    storage.write_vae(work.path("vae"), vae)
    work.log("vae_curve", curve)


def run_dit(work: Work, minutes: float) -> None:
    vae = storage.read_vae(work.path("vae")).to(work.device)
    dit, text, curve = train_dit(work.world("dit"), vae, work.book(), minutes, SEED)
    storage.write_editor(work.path("dit"), dit, text, work.folder / "tokenizer.json")
    work.log("dit_curve", curve)


def run_stream(work: Work, minutes: float, name: str = "stream", cycle: bool = True) -> None:
    vae = storage.read_vae(work.path("vae")).to(work.device)
    parts = storage.read_editor(work.path("dit"))
    dit, text, curve = train_stream(work.world("stream"), vae, work.book(), parts, minutes, cycle)
    storage.write_editor(work.path(name), dit, text, work.folder / "tokenizer.json")
    work.log(f"{name}_curve", curve)


def run_ablation(work: Work, minutes: float) -> None:
    """Two equal, shorter trainings of the last stage, with and without cycle-reverse, and what each is worth."""
    for name, cycle in (("cycle", True), ("no_cycle", False)):
        run_stream(work, minutes, name, cycle)
        judge = work.judge(name)
        work.log(f"{name}_quality", {"procedural": judge.table(real=False), "drift": judge.drift()})


def run_judge(work: Work, stage: str = "words") -> None:
    judge = work.judge(stage)
    vae = judge.vae_psnr()
    print({"vae": vae}, flush=True)
    tables = {"real": judge.table(real=True), "procedural": judge.table(real=False)}
    drift = {"drift": judge.drift(), "drift_without_state": judge.drift(forget=True)}
    work.log("stream_quality", {"vae": vae, **tables, **drift})
    judge.sheet(work.folder / "sheet.jpg")


def run_words(work: Work, minutes: float) -> None:
    dit, text, curve = train_words(storage.read_editor(work.path("stream")), work.book(), minutes, SEED)
    storage.write_editor(work.path("words"), dit, text, work.folder / "tokenizer.json")
    work.log("words_curve", curve)


def release(work: Work) -> None:
    """Put the parts together in the released layout, in the folder `tiny`."""
    for stage in ("vae", "words"):
        shutil.copytree(work.path(stage), work.path("tiny"), dirs_exist_ok=True)


STAGES: dict[str, Callable[[Work, float], None]] = {
    "vae": run_vae,
    "dit": run_dit,
    "stream": run_stream,
    "words": run_words,
    "ablation": run_ablation,
}


def main(
    work: Annotated[Path, typer.Option(help="Folder for the data, the stages and the logs.")],
    stage: Annotated[
        str, typer.Option(help="One of vae, dit, stream, words, ablation, judge; all but ablation if empty.")
    ] = "",
    minutes: Annotated[float, typer.Option(help="Length of the stage; 0 for its own.")] = 0,
) -> None:
    """Train the tiny checkpoint. A stage that has been done is read back by the next one, not done again."""
    if not (work / "data.npz").exists():
        collect(work / "data.npz")
    session = Work(work)
    for name in [stage] if stage else ["vae", "dit", "stream", "words", "judge"]:
        if name == "judge":
            release(session)
            run_judge(session)
        elif stage or not session.path(name).exists():
            STAGES[name](session, minutes or MINUTES[name])


if __name__ == "__main__":
    typer.run(main)
