"""Packaging: what is written, that it is the same every time, and that an edit is noticed."""

import shutil
import zipfile
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fakes.tiny_engines import CHANNELS, TOKENS, WIDTH, write_fake_repository
from sana_build.repository import ENSEMBLE, MODELS, check_config, check_repository, package
from sana_runtime.errors import BuildError, RepositoryError
from sana_runtime.manifest import Manifest


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "repository"
    write_fake_repository(path, streams=3)
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "repository")


def config(repository: Path, model: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def dims(repository: Path, model: str) -> dict[str, list[int]]:
    parsed = config(repository, model)
    return {tensor.name: list(tensor.dims) for tensor in (*parsed.input, *parsed.output)}


def test_checks_out_and_round_trips(built: Path) -> None:
    manifest = check_repository(built)
    assert manifest == Manifest.read(built)
    assert set(manifest.files) == {
        path.relative_to(built).as_posix()
        for path in built.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_only_model_folders_are_folders(built: Path) -> None:
    assert {path.name for path in built.iterdir() if path.is_dir()} == set(MODELS)
    assert all((built / model / "1").is_dir() for model in MODELS)


def test_wire_names_types_and_sizes(built: Path) -> None:
    frames = [-1, 16, 16, 3]
    latent = [CHANNELS, -1, 1, 1]
    assert dims(built, "sana_streaming") == {"frames": frames, "prompt": [-1], "edited": frames}
    assert dims(built, "text_encoder") == {"prompt": [-1], "text": [-1, WIDTH], "text_mask": [TOKENS]}
    assert dims(built, "vae_encoder") == {"frames": frames, "text_mask": [TOKENS], "source": latent}
    assert dims(built, "denoiser") == {
        "source": latent,
        "text": [-1, WIDTH],
        "text_mask": [TOKENS],
        "latent": latent,
    }
    assert dims(built, "vae_decoder") == {"latent": latent, "edited": frames}


def test_every_stage_has_the_same_slots_and_idle_time(built: Path) -> None:
    for model in set(MODELS) - {ENSEMBLE}:
        parsed = config(built, model)
        assert parsed.max_batch_size == 1
        assert parsed.sequence_batching.oldest.max_candidate_sequences == 3
        assert parsed.sequence_batching.max_sequence_idle_microseconds == 30_000_000


def test_client_finds_the_geometry_in_the_ensemble(built: Path) -> None:
    parameters = {name: value.string_value for name, value in config(built, ENSEMBLE).parameters.items()}
    assert len(parameters.pop("build")) == 12
    assert parameters == {
        "first_frames": "33",
        "steady_frames": "24",
        "height": "16",
        "width": "16",
        "max_chunks": "8",
        "model": "fake",
        "regions": "sana-frames-",
        "latent_bytes": str(4 * 5 * CHANNELS),
    }


def test_two_builds_are_the_same_bytes(built: Path, tmp_path: Path) -> None:
    write_fake_repository(tmp_path / "again", streams=3)
    assert Manifest.read(tmp_path / "again").files == Manifest.read(built).files


def test_runtime_zip_holds_the_runtime_and_nothing_else(built: Path) -> None:
    names = zipfile.ZipFile(built / "sana_runtime.zip").namelist()
    assert {"sana_runtime/__init__.py", "sana_runtime/triton_backend.py"} <= set(names)
    assert all(name.startswith("sana_runtime/") and name.endswith(".py") for name in names)


@pytest.mark.parametrize("name", ["denoiser/1/first.onnx", "vae_decoder/config.pbtxt", "sana_runtime.zip"])
def test_edited_file_is_refused(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(RepositoryError, match=f"{name} was changed after the build"):
        check_repository(copy)


def test_removed_file_is_refused(copy: Path) -> None:
    (copy / "denoiser" / "1" / "model.py").unlink()
    with pytest.raises(RepositoryError, match=r"model\.py is missing"):
        check_repository(copy)


def test_added_version_is_refused(copy: Path) -> None:
    shutil.copytree(copy / "denoiser" / "1", copy / "denoiser" / "2")
    with pytest.raises(RepositoryError, match=r"denoiser/2/first\.onnx was added after the build"):
        check_repository(copy)


def test_added_model_folder_is_refused(copy: Path) -> None:
    (copy / "another").mkdir()
    with pytest.raises(RepositoryError, match="differs in: another"):
        check_repository(copy)


def test_byte_code_beside_the_models_is_no_edit(copy: Path) -> None:
    cache = copy / "denoiser" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"")
    check_repository(copy)


def test_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"has no manifest\.json"):
        check_repository(tmp_path)


def test_missing_engine_is_refused(copy: Path) -> None:
    manifest = Manifest.read(copy)
    (copy / "vae_encoder" / "1" / "steady.onnx").unlink()
    with pytest.raises(BuildError, match="engine vae_encoder/steady is missing"):
        package(copy, manifest)


def test_field_newer_than_the_server_is_refused() -> None:
    parsed = model_config_pb2.ModelConfig(name="m")
    parsed.ensemble_scheduling.max_inflight_requests = 2
    with pytest.raises(BuildError, match="max_inflight_requests"):
        check_config(parsed)


def test_state_that_the_server_would_drop_is_refused() -> None:
    parsed = model_config_pb2.ModelConfig(name="m", backend="python")
    parsed.sequence_batching.state.add(input_name="a", output_name="b")
    with pytest.raises(BuildError, match="drops `state` silently"):
        check_config(parsed)
