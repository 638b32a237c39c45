"""`sana-build search`: which precision policy is best for a model on a card, found by measuring a few of them."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sana_build.calibrate import shipped_clip
from sana_build.gpus import GPUS, Gpu, choose_gpu
from sana_build.judge import Finding, Setting
from sana_build.jury import Done, Jury
from sana_build.plan import streaming_model
from sana_build.progress import progress_bar
from sana_build.rollouts import read_clip
from sana_build.search_workers import devices
from sana_build.sizes import steady_chunk
from sana_export.checkpoint import resolve as resolve_checkpoint
from sana_quant.cost import ideal_speedup, roofline, shares
from sana_quant.groups import GROUPS
from sana_quant.policy import Policy, load_policy
from sana_quant.search.errors import Errors
from sana_quant.search.front import Time
from sana_quant.search.methods import Budget, additive, paper
from sana_quant.search.store import Store
from sana_quant.search.study import Study, Trial
from sana_quant.work import transformer_work
from sana_runtime.errors import BuildError, ConfigError, choose

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sana_export.configs import ModelConfig

BASE = "fp8"
"""Where a search starts, as the paper's does."""

TRIALS = "trials.jsonl"

PRECISIONS = ("nvfp4", "bf16")
"""What else a layer may run in: narrower where that hardly shows, wider where BASE shows."""

PROMPTS = (
    "Turn day into night.",
    "Turn the video into a pencil drawing.",
    "Make it like a cartoon with flat colours.",
    "Add a red ball in the middle.",
)

HELD_OUT_PROMPTS = (
    "Give the video a sepia tone.",
    "Cover the scene with thick fog.",
    "Make it look like a mosaic of large tiles.",
    "Light the scene with a warm golden hour.",
)
"""Edits that no policy was chosen on."""

SEARCH_WINDOWS, HELD_OUT_WINDOWS = range(2), range(2, 3)
"""Stretches of a clip: the first two to choose on, the third to check the choice on."""

HELD_OUT_SEED = 1000
BUDGET = Budget()

MIXES, FINALISTS = 4, 7
SWEEP = len(GROUPS) + 3
"""Policies per precision in a sweep: every group, every range of blocks."""


@dataclass(frozen=True)
class SearchPlan:
    """Everything chosen before work starts."""

    gpu: Gpu
    method: str
    setting: Setting
    held_out: Setting
    workers: int
    output: Path

    @property
    def model(self) -> "ModelConfig":
        return self.setting.model

    @property
    def depth(self) -> int:
        return self.model.dit.depth

    def table(self) -> "Table":
        """The plan as a two-column table for a person."""
        from rich.table import Table

        setting = self.setting
        streams = len(setting.streams())
        rows = {
            "model": self.model.name,
            "checkpoint": setting.checkpoint.describe(),
            "target": f"{self.gpu.name} ({self.gpu.title})",
            "method": self.method,
            "streams": f"{streams} of {setting.chunks} chunks, {', '.join(clip.name for clip in setting.clips)}",
            "prompts": "\n".join(setting.prompts),
            "workers": f"{self.workers} on {devices()} device(s)",
            "output": str(self.output),
        }
        table = Table(show_header=False, box=None)
        for name, value in rows.items():
            table.add_row(f"[bold]{name}[/]", value)
        return table


@dataclass(frozen=True)
class Outcome:
    """A finished search. `picks` are its policies by name, `errors` what the sweep alone predicted, if it did.

    `findings` are the picks and the reference on held-out streams, `sources` the last source frame of each of those.
    """

    plan: SearchPlan
    study: Study
    card: Time | None
    errors: Errors | None
    picks: Mapping[str, Trial]
    findings: Mapping[str, Finding]
    sources: np.ndarray
    seconds: float


def resolve(
    model: str,
    gpu: str,
    output: Path,
    checkpoint: str | None,
    clips: Sequence[Path],
    prompts: Sequence[str],
    chunks: int,
    method: str,
    workers: int | None,
) -> SearchPlan:
    """Check every name, path and clip before any work; raises ConfigError or CheckpointError."""
    config, card = streaming_model(model), choose_gpu(gpu)
    choose("--method", method, METHODS)
    check_card(card)
    if chunks < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"--chunks {chunks} and --workers {workers} must be at least 1")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the report needs matplotlib, which is not installed: pip install 'sana-build[search]'")
    check_folder(output)
    paths = tuple(clips) or (shipped_clip(),)
    for clip in paths:
        read_clip(clip, config.geometry, 1)
    weights = resolve_checkpoint(checkpoint or config.checkpoint, config)
    weights.check(config)
    setting = Setting(config, weights, paths, tuple(prompts) or PROMPTS, chunks, SEARCH_WINDOWS, 0)
    others = tuple(prompts) or HELD_OUT_PROMPTS
    held_out = replace(setting, prompts=others, windows=HELD_OUT_WINDOWS, seed=HELD_OUT_SEED)
    return SearchPlan(card, method, setting, held_out, workers or devices(), output)


def check_card(gpu: Gpu) -> None:
    """Raise ConfigError for a card on which speed leaves nothing to choose."""
    if not {BASE, *PRECISIONS} <= gpu.precisions:
        able = ", ".join(name for name, card in GPUS.items() if {BASE, *PRECISIONS} <= card.precisions)
        fastest = gpu.best_policy(1).name
        raise ConfigError(
            f"--gpu {gpu.name} does not run nvfp4, so --policy {fastest} is its fastest and nothing is left to search: "
            f"choose one of {able}"
        )


def check_folder(output: Path) -> None:
    """Refuse an output folder that holds something that is not a search."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file: name a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / TRIALS).is_file():
        raise ConfigError(f"--output {output} is not empty and has no {TRIALS}: name a new folder, or empty this one")


def search(plan: SearchPlan, console: "Console") -> Outcome:
    """Measure, choose, check the choice on held-out streams, and write everything into the output folder."""
    from sana_build.search_report import write

    started, weights = time.perf_counter(), plan.setting.checkpoint.identity()
    plan.output.mkdir(parents=True, exist_ok=True)
    ideal, card = times(plan)
    with closing(Store(plan.output / TRIALS)) as store, reporting(plan, console) as done:
        with Jury(plan.setting, plan.workers, plan.output, store, done) as jury:
            study = Study(jury.measure, ideal, full=1.0, slowest=ideal(known(plan)[BASE]))
            errors, picks = METHODS[plan.method](study, plan)
            calibration = jury.calibration()
        checked = {"reference": None, **{name: trial.policy for name, trial in picks.items()}}
        held_out = replace(plan.held_out, calibration=calibration)
        with Jury(held_out, plan.workers, plan.output, store, done) as jury:
            findings, sources = jury.inspect(checked), jury.sources()
    check_unchanged(plan, weights)
    outcome = Outcome(plan, study, card, errors, picks, findings, sources, time.perf_counter() - started)
    write(outcome)
    return outcome


def check_unchanged(plan: SearchPlan, weights: str) -> None:
    """Raise BuildError if the weights are no longer those that had this identity when the search began."""
    if plan.setting.checkpoint.identity() != weights:
        raise BuildError(
            f"the weights of {plan.setting.checkpoint.describe()} changed during the search, so its scores belong to "
            "two models: start it again, and it measures the new weights"
        )


def times(plan: SearchPlan) -> tuple[Time, Time | None]:
    """The ideal time of a policy, 1 being that of BF16, and the seconds per chunk at the card's ceilings, if known."""
    model = plan.model
    work = transformer_work(model.dit, steady_chunk(model))
    per_chunk = [item for item in work if not item.per_prompt]
    passes, rates = model.stream.steps + 1, plan.gpu.rates
    if rates is None or not {BASE, *PRECISIONS} <= rates.flops.keys():
        return lambda policy: 1 / ideal_speedup(shares(work, policy)), None

    def seconds(policy: Policy) -> float:
        return passes * (roofline(per_chunk, policy, rates) or 0.0)

    return lambda policy: 1 / ideal_speedup(shares(work, policy)), seconds


Found = tuple[Errors | None, dict[str, Trial]]


def search_additive(study: Study, plan: SearchPlan) -> Found:
    """The sweep, the prediction and the refinement, and for comparison what the paper's search would choose."""
    base, fixed = known(plan)[BASE], known(plan)["mpq"]
    errors = additive(study, base, PRECISIONS, known(plan).values(), fixed, BUDGET)
    theirs = paper(study, base, "nvfp4")
    fast, found = study.best_within(study.time(fixed)), study.cheapest()
    return errors, {**compared(study, plan), "paper's search": theirs, "fast": fast, "found": found}


def search_paper(study: Study, plan: SearchPlan) -> Found:
    """The paper's search alone."""
    found = paper(study, known(plan)[BASE], "nvfp4")
    return None, {**compared(study, plan), "found": found}


def known(plan: SearchPlan) -> dict[str, Policy]:
    """Shipped policies that every search is compared with; the last is the paper's choice for its own model."""
    return {name: load_policy(name, plan.depth) for name in (BASE, "fp4", "mpq")}


def compared(study: Study, plan: SearchPlan) -> dict[str, Trial]:
    policies = known(plan)
    return dict(zip(policies, study.run("comparison", policies.values()), strict=True))


METHODS: dict[str, Callable[[Study, SearchPlan], Found]] = {"additive": search_additive, "paper": search_paper}


@contextmanager
def reporting(plan: SearchPlan, console: "Console") -> Iterator[Done]:
    """A progress bar over at most as many policies as the method may measure."""
    sweep = len(PRECISIONS) * SWEEP + BUDGET.most if plan.method == "additive" else SWEEP
    most = 1 + sweep + len(known(plan)) + MIXES + FINALISTS
    with progress_bar(console) as progress:
        task = progress.add_task("loading", total=most)
        yield lambda label: progress.update(task, advance=1, description=label)
        progress.update(task, total=progress.tasks[task].completed, description="done")
