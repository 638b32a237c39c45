"""Checkpoint import is strict: what is right loads bit for bit, what is wrong is named in one sentence."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from micro import MICRO
from sana_export import dit_keys, vae_keys
from sana_export.checkpoint import check_tensors, resolve, write_random
from sana_export.configs import SANA_STREAMING, SANA_STREAMING_BIDIRECTIONAL, ModelConfig
from sana_export.tensor_files import read_tensors
from sana_runtime.errors import CheckpointError, ConfigError

SOME_KEY = "blocks.1.attn.proj.weight"
DIT_FILE = "dit/sana_streaming_ar.pth"
VAE_FILE = "ltx2_causal_vae_0516/diffusion_pytorch_model.safetensors"
BIDIRECTIONAL = replace(
    MICRO,
    name="micro-bidirectional",
    dit=replace(MICRO.dit, streaming=False),
    vae=replace(MICRO.vae, decoder_causal=False),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "micro"
    write_random(MICRO, 7, folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of the written checkpoint, to damage."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


@pytest.fixture
def released(written: Path) -> dict[str, Tensor]:
    return read_tensors(written / DIT_FILE)


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def assert_same_weights(first: object, second: object, model: ModelConfig) -> None:
    assert_equal(first.load_dit(model.dit), second.load_dit(model.dit))
    assert_equal(first.load_vae(model.vae), second.load_vae(model.vae))
    assert_equal(first.load_text(model), second.load_text(model))
    assert first.tokenizer_path().read_bytes() == second.tokenizer_path().read_bytes()


def load_all(spec: str, model: ModelConfig) -> None:
    checkpoint = resolve(spec, model)
    checkpoint.load_dit(model.dit)
    checkpoint.load_vae(model.vae)
    checkpoint.load_text(model)


def refusal(folder: Path | str, model: ModelConfig = MICRO) -> str:
    """What the first load that fails says."""
    with pytest.raises(CheckpointError) as caught:
        load_all(str(folder), model)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("model", [MICRO, BIDIRECTIONAL], ids=lambda model: model.name)
def test_random_weights_equal_what_is_written_and_read(tmp_path: Path, model: ModelConfig) -> None:
    write_random(model, 3, tmp_path / "w")
    assert_same_weights(resolve("random:3", model), resolve(str(tmp_path / "w"), model), model)


def test_modules_come_in_evaluation_mode_and_fp32(written: Path) -> None:
    checkpoint = resolve(str(written), MICRO)
    modules = checkpoint.load_dit(MICRO.dit), checkpoint.load_vae(MICRO.vae), checkpoint.load_text(MICRO)
    assert not any(part.training for module in modules for part in module.modules())
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}


def test_a_file_takes_its_companions_from_the_same_layout(written: Path, tmp_path: Path) -> None:
    assert_same_weights(resolve(str(written / DIT_FILE), MICRO), resolve(str(written), MICRO), MICRO)
    lone = tmp_path / "lone.pth"
    shutil.copy(written / DIT_FILE, lone)
    assert "has no VAE folder ltx2_causal_vae_0516 or vae" in refusal(lone)


def test_bf16_files_are_accepted(folder: Path, released: dict[str, Tensor]) -> None:
    torch.save({"state_dict": {key: value.bfloat16() for key, value in released.items()}}, folder / DIT_FILE)
    dit = resolve(str(folder), MICRO).load_dit(MICRO.dit)
    weight = dit.state_dict()[SOME_KEY]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, released[SOME_KEY].bfloat16().float())


def nested(tensors: dict[str, Tensor]) -> list[dict[str, object]]:
    prefixed = {f"model.module.{key}": value for key, value in tensors.items()}
    return [
        tensors,
        {"state_dict": tensors, "epoch": 3},
        {"generator": {"state_dict": tensors}, "generator_ema": {"state_dict": {}}, "optimizer": 1},
        {"generator": prefixed, "critic": {}},
        {f"model.{key}": value for key, value in tensors.items()},
        {f"module.{key}": value for key, value in tensors.items()},
    ]


def test_trainer_nesting_is_unwrapped(released: dict[str, Tensor], tmp_path: Path) -> None:
    for index, content in enumerate(nested(released)):
        torch.save(content, tmp_path / f"{index}.pt")
        assert read_tensors(tmp_path / f"{index}.pt").keys() == released.keys()


def test_safetensors_and_shards_are_read(folder: Path, released: dict[str, Tensor]) -> None:
    expected = resolve(str(folder), MICRO).load_dit(MICRO.dit)
    (folder / DIT_FILE).unlink()
    whole = folder / "dit" / "sana_streaming_ar.safetensors"
    save_file(released, whole)
    assert_equal(resolve(str(folder), MICRO).load_dit(MICRO.dit), expected)
    whole.unlink()
    write_shards(released, folder / "dit", "sana_streaming_ar")
    assert_equal(resolve(str(folder), MICRO).load_dit(MICRO.dit), expected)
    (folder / "dit" / "sana_streaming_ar-00002-of-00002.safetensors").unlink()
    assert "sana_streaming_ar-00002-of-00002.safetensors does not exist" in refusal(folder)


def write_shards(tensors: dict[str, Tensor], folder: Path, stem: str) -> None:
    names = {key: f"{stem}-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(tensors)}
    for shard in set(names.values()):
        save_file({key: value for key, value in tensors.items() if names[key] == shard}, folder / shard)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_optional_buffers_may_be_absent(folder: Path, released: dict[str, Tensor]) -> None:
    kept = {key: value for key, value in released.items() if key not in dit_keys.OPTIONAL}
    assert len(kept) < len(released)
    torch.save(kept, folder / DIT_FILE)
    resolve(str(folder), MICRO).load_dit(MICRO.dit)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(folder: Path, released: dict[str, Tensor]) -> None:
    del released[SOME_KEY], released["t_block.1.bias"]
    released["blocks.0.lora_a"] = torch.zeros(2)
    released["final_layer.linear.bias"] = torch.zeros(9)
    torch.save(released, folder / DIT_FILE)
    message = refusal(folder)
    assert DIT_FILE in message
    for fault in (
        f"{SOME_KEY} is missing",
        "t_block.1.bias is missing",
        "blocks.0.lora_a is unexpected",
        "final_layer.linear.bias has shape [9] instead of [8]",
    ):
        assert fault in message


def test_a_long_list_of_faults_is_cut(released: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more$") as caught:
        check_tensors("here", dit_keys.released_shapes(MICRO.dit), {})
    assert str(caught.value).count("is missing") == 20


def test_quantised_tensors_are_refused(folder: Path, released: dict[str, Tensor]) -> None:
    released[SOME_KEY] = released[SOME_KEY].to(torch.int8)
    torch.save(released, folder / DIT_FILE)
    assert f"{SOME_KEY} has dtype int8" in refusal(folder)


def test_another_mode_width_or_depth_is_said_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    write_random(BIDIRECTIONAL, 0, tmp_path / "b")
    other = tmp_path / "b" / "dit" / "sana_bidirectional_short.pth"
    shutil.copy(other, folder / DIT_FILE)
    assert "is a bidirectional transformer and the model is streaming" in refusal(folder)
    for change, words in (({"hidden": 128, "heads": 4}, "of hidden width 64"), ({"depth": 8}, "of 4 blocks")):
        model = replace(BIDIRECTIONAL, dit=replace(BIDIRECTIONAL.dit, **change))
        assert words in refusal(tmp_path / "b", model)


@pytest.mark.parametrize("file", [DIT_FILE, VAE_FILE, "text_encoder/model.safetensors"])
@pytest.mark.parametrize("size", [0, 10, 20_000])
def test_cut_files_are_refused(folder: Path, file: str, size: int) -> None:
    os.truncate(folder / file, size)
    message = refusal(folder)
    assert file in message
    assert "is damaged or cut short" in message


def test_a_pickle_that_runs_code_is_refused(folder: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Attack()}, folder / DIT_FILE)
    assert "damaged" in refusal(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": "weights"}, 5])
def test_a_file_of_something_else_is_refused(folder: Path, content: object) -> None:
    torch.save(content, folder / DIT_FILE)
    assert "holds something else than a state dict" in refusal(folder)


def test_damaged_vae_is_named(folder: Path) -> None:
    tensors = load_file(folder / VAE_FILE)
    del tensors["decoder.conv_in.conv.bias"]
    save_file(tensors, folder / VAE_FILE)
    assert "decoder.conv_in.conv.bias is missing" in refusal(folder)


def test_another_vae_is_said_in_a_sentence(folder: Path) -> None:
    path = folder / "ltx2_causal_vae_0516" / "config.json"
    for change, words in (
        ({"decoder_causal": False}, "symmetric (LTX-2) decoder"),
        ({"latent_channels": 16}, "latent_channels 16 instead of 8"),
        ({"timestep_conditioning": True}, "timestep_conditioning = True"),
    ):
        path.write_text(json.dumps({**vae_keys.config_to_json(MICRO.vae), **change}))
        assert words in refusal(folder)
    path.write_text("{")
    assert "config.json cannot be read" in refusal(folder)


def test_another_text_encoder_is_said_in_a_sentence(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "model_type": "gemma3"}))
    assert "a gemma3 text encoder" in refusal(folder)
    path.write_text(json.dumps({**fields, "hidden_size": 256}))
    assert "of width 256: micro takes a gemma2 of width 128" in refusal(folder)
    path.write_text(json.dumps({**fields, "num_hidden_layers": 3, "layer_types": None}))
    assert "layers.2.self_attn.q_proj.weight is missing" in refusal(folder)


def test_text_encoder_may_carry_its_unused_head(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(path), "lm_head.weight": torch.zeros(1024, 128)}, path)
    resolve(str(folder), MICRO).load_text(MICRO)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("dit", "dit holds no .pth or"),
        ("text_encoder", "has no folder text_encoder"),
        ("ltx2_causal_vae_0516", "has no VAE folder"),
        ("text_encoder/tokenizer.json", "tokenizer.json does not exist"),
        (VAE_FILE, "has no diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_missing_part_is_named(folder: Path, part: str, words: str) -> None:
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert words in refusal(folder)


def test_of_several_transformers_the_named_one_is_taken(folder: Path) -> None:
    shutil.copy(folder / DIT_FILE, folder / "dit" / "ema.pth")
    assert "sana_streaming_ar.pth" in resolve(str(folder), MICRO).describe()
    (folder / DIT_FILE).rename(folder / "dit" / "raw.pth")
    assert "several transformers (ema.pth, raw.pth)" in refusal(folder)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("random:", "has no seed"),
        ("random:x", "has no seed"),
        ("random:" + "9" * 19, "has no seed"),
        ("no/such/folder", "does not exist"),
    ],
)
def test_unusable_names_are_refused(spec: str, words: str) -> None:
    assert words in refusal(spec)


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "dit" / "notes.txt").write_text("x")
    assert "must end in one of .pth" in refusal(folder / "dit" / "notes.txt")


class FakeHub:
    """Serves folders as repositories, only the files that match, and counts what was asked for."""

    def __init__(self, repositories: dict[str, Path], cache: Path) -> None:
        self.repositories, self.cache, self.asked = repositories, cache, []

    def snapshot_download(self, repository: str, allow_patterns: list[str]) -> str:
        self.asked.append(repository)
        if repository not in self.repositories:
            raise ConnectionError("no network\nand a long trace")
        target = self.cache / repository
        for path in self.repositories[repository].rglob("*"):
            relative = path.relative_to(self.repositories[repository])
            if path.is_file() and any(relative.match(pattern) for pattern in allow_patterns):
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / relative)
        return str(target)


def test_hub_parts_come_from_their_own_repositories(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, vae = tmp_path / "text", tmp_path / "vae"
    shutil.move(folder / "text_encoder", text)
    shutil.move(folder / "ltx2_causal_vae_0516", vae / "ltx2_causal_vae_0516")
    model = replace(MICRO, vae_repository="lab/vae", text_repository="lab/gemma")
    hub = FakeHub({"lab/dit": folder, "lab/vae": vae, "lab/gemma": text}, tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    assert_same_weights(resolve("lab/dit", model), resolve("random:7", model), model)
    assert hub.asked == ["lab/dit", "lab/vae", "lab/gemma"]


def test_an_unreachable_hub_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", FakeHub({}, tmp_path).snapshot_download)
    message = refusal("lab/dit")
    assert "lab/dit is no file or folder here and cannot be fetched from the hub (no network)" in message


def test_identity_follows_files_and_seed(folder: Path) -> None:
    before = resolve(str(folder), MICRO).identity()
    assert resolve(str(folder), MICRO).identity() == before
    os.utime(folder / VAE_FILE, (1, 1))
    assert resolve(str(folder), MICRO).identity() != before
    seeds = [resolve(f"random:{seed}", MICRO).identity() for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_writing_over_something_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty"):
        write_random(MICRO, 0, folder)


def test_production_transformer_has_the_released_size() -> None:
    totals = {}
    for model in (SANA_STREAMING, SANA_STREAMING_BIDIRECTIONAL):
        shapes = dit_keys.released_shapes(model.dit)
        assert len(shapes) == 588
        live = [shape for key, shape in shapes.items() if key not in dit_keys.OPTIONAL]
        totals[model.name] = sum(torch.Size(shape).numel() for shape in live)
    assert totals == {"sana-streaming": 2_259_529_648, "sana-streaming-bidirectional": 2_159_177_648}


def test_weights_that_did_not_come_with_the_package_are_named() -> None:
    with pytest.raises(CheckpointError, match="no weights called 'huge' came with sana-build"):
        resolve("shipped:huge", MICRO)
