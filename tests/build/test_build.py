import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from micro import micro_plan
from sana_build.build import build
from sana_runtime.errors import CheckpointError, ConfigError, SanaError
from sana_runtime.manifest import Manifest


@dataclass(frozen=True)
class BrokenCheckpoint:
    """Weights that turn out to be damaged half way through a build."""

    good: object

    def load_dit(self, config: object) -> None:
        raise CheckpointError("the transformer is damaged")

    def __getattr__(self, name: str) -> Callable:
        return getattr(self.good, name)


@pytest.fixture
def built(micro_repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(micro_repository, tmp_path / "repo")


def test_a_build_lists_its_engines_and_how_far_they_are_from_pytorch(built: Path) -> None:
    manifest = Manifest.read(built)
    variants = {stage: sorted(engines) for stage, engines in manifest.engines.items()}
    assert variants == {
        "text_encoder": ["prompt"],
        "vae_encoder": ["first", "steady"],
        "denoiser": ["first", "prompt", "steady"],
        "vae_decoder": ["first", "steady"],
    }
    entries = [entry for _, _, entry in manifest.every_engine()]
    assert all((built / entry.path).is_file() and entry.error for entry in entries)
    assert max(error for entry in entries for name, error in entry.error.items() if name != "edited") < 1e-4
    assert manifest.versions.keys() >= {"torch", "onnxruntime", "transformers"}


def test_a_failed_build_leaves_the_last_one_in_place(built: Path) -> None:
    before = (built / "manifest.json").read_bytes()
    plan = micro_plan(built)
    with pytest.raises(CheckpointError, match="damaged"):
        build(replace(plan, checkpoint=BrokenCheckpoint(plan.checkpoint)), Console(quiet=True))
    assert (built / "manifest.json").read_bytes() == before
    assert [path.name for path in built.parent.iterdir()] == ["repo"]


def test_an_output_that_cannot_be_written_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        build(micro_plan(Path("/proc/sana/repo")), Console(quiet=True))


def test_an_edited_manifest_is_refused(built: Path) -> None:
    text = (built / "manifest.json").read_text()
    for broken in (text[:100], text.replace('"version": "', '"version": "9.'), text.replace('"geometry"', '"shape"')):
        (built / "manifest.json").write_text(broken)
        with pytest.raises(SanaError, match="build"):
            Manifest.read(built)
