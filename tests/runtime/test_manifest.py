"""Which engine of a repository a machine gets."""

from dataclasses import replace

import pytest

from fakes.engines import MANIFEST
from sana_runtime.errors import RepositoryError
from sana_runtime.manifest import EngineEntry, Manifest


def entry(name: str, *sms: int) -> EngineEntry:
    return EngineEntry(f"denoiser/1/{name}", "tensorrt_rtx", {}, {}, {}, policy=name, sms=list(sms))


def family() -> Manifest:
    entries = [entry("mpq", 120, 121), entry("fp8", 89), entry("bf16", 86)]
    return replace(MANIFEST, gpu="rtx", engines={"denoiser": {"first": entries, "steady": entries}})


@pytest.mark.parametrize(("sm", "policy"), [(120, "mpq"), (121, "mpq"), (89, "fp8"), (86, "bf16")])
def test_every_card_of_a_family_gets_its_own_engines(sm: int, policy: str) -> None:
    picked = family().pick("denoiser", sm)
    assert {variant: chosen.policy for variant, chosen in picked.items()} == {"first": policy, "steady": policy}


def test_a_card_without_an_engine_is_told_what_there_is() -> None:
    with pytest.raises(
        RepositoryError, match=r"built for SM86, SM89, SM120, SM121 \(--gpu rtx\) and this card is SM90"
    ):
        family().pick("denoiser", 90)
    with pytest.raises(RepositoryError, match="this machine has no usable GPU"):
        family().pick("denoiser", None)


def test_a_cpu_engine_runs_anywhere() -> None:
    manifest = replace(MANIFEST, engines={"denoiser": {"first": [entry("fp32")]}})
    assert manifest.pick("denoiser", None)["first"].policy == manifest.pick("denoiser", 120)["first"].policy == "fp32"


def test_a_stage_without_engines_is_refused() -> None:
    with pytest.raises(RepositoryError, match="no engine for vae_encoder"):
        family().pick("vae_encoder", 120)
