"""--gdn plugin: what it changes in a plan, what it is refused for, and the check that every core became a plugin."""

import importlib.util
from dataclasses import replace

import pytest

from micro import MICRO
from sana_build.engine_cache import graph_key
from sana_build.engine_jobs import EngineJob, engine_jobs
from sana_build.gdn_plugin import GDN, check_cores, check_gdn, register, with_gdn
from sana_build.gpus import GPUS
from sana_build.layer_table import EngineLayer
from sana_build.plan import STAGES
from sana_export.checkpoint import resolve
from sana_quant.policy import load_policy
from sana_runtime.errors import BuildError, ConfigError

pytest.importorskip("triton")

DIT = MICRO.dit
CORES = ("blocks.0.attn/SanaGDN", "blocks.1.attn/SanaGDN")
JOB = EngineJob("denoiser", "steady", "steady", load_policy("mpq", DIT.depth), (120,), (), "plugin-bf16", CORES)


def jobs(gdn: str, gpu: str = "rtx") -> dict[str, EngineJob]:
    native = engine_jobs(STAGES, GPUS[gpu], load_policy("mpq", DIT.depth), DIT.depth)
    return {job.label: job for job in with_gdn(native, gdn, DIT)}


def test_only_engines_that_run_for_every_chunk_hold_the_plugin_once_per_gdn_block() -> None:
    native, plugin = jobs("native"), jobs("plugin")
    assert not any(job.cores for job in native.values())
    changed = {label for label in native if native[label] != plugin[label]}
    assert changed == {
        f"denoiser/{variant}-{policy}" for variant in ("first", "steady") for policy in ("mpq", "fp8", "bf16")
    }
    blocks = [block for block in range(DIT.depth) if block not in DIT.softmax_blocks]
    assert plugin["denoiser/first-fp8"].cores == tuple(f"blocks.{block}.attn/SanaGDN" for block in blocks)


def test_a_graph_with_the_plugin_belongs_to_its_architectures() -> None:
    def key(job: EngineJob) -> str:
        return graph_key(MICRO, resolve("random:0", MICRO), None, job)

    plugin, native = jobs("plugin")["denoiser/steady-bf16"], jobs("native")["denoiser/steady-bf16"]
    assert len({key(native), key(plugin), key(replace(plugin, sms=(89,)))}) == 3
    assert key(native) == key(replace(native, sms=(89,)))


@pytest.mark.parametrize(
    ("name", "gpu", "says"),
    [
        ("triton", "rtx5090", r"unknown --gdn 'triton': choose one of native, plugin$"),
        ("plugin", "cpu", r"--gdn plugin is for TensorRT-RTX and --gpu cpu runs onnxruntime: use native$"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(name: str, gpu: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_gdn(name, GPUS[gpu])


def test_kernels_need_their_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GDN:
        check_gdn(name, GPUS["rtx"])
    find = importlib.util.find_spec
    monkeypatch.setattr("sana_build.gdn_plugin.find_spec", lambda name: None if name == "triton" else find(name))
    check_gdn("native", GPUS["rtx"])
    with pytest.raises(ConfigError, match=r"Triton, which is not installed: run `pip install triton`"):
        check_gdn("plugin", GPUS["rtx"])


def test_a_plugin_that_cannot_be_registered_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sana_kernels.plugin", None)
    monkeypatch.delattr("sana_kernels.plugin", raising=False)
    with pytest.raises(BuildError, match="the GDN plugin cannot be registered"):
        register()


def custom(*nodes: str) -> EngineLayer:
    return EngineLayer("+".join(nodes), "custom_layer", ("bf16",), nodes)


def test_every_core_is_one_custom_layer_of_its_own() -> None:
    layers = [EngineLayer("g", "gemm", ("bf16",), ("blocks.0.attn.q",)), *(custom(core) for core in CORES)]
    (row,) = check_cores("e", layers, JOB)
    assert (row.group, row.precision, row.requested, row.found) == ("GDN core", "plugin-bf16", 2, 2)
    assert check_cores("e", layers[:1], replace(JOB, cores=())) == []


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([custom(CORES[0])], r"e: blocks\.1\.attn/SanaGDN is 0 custom layers of the engine, and should be one"),
        ([custom(*CORES)], r"blocks\.0\.attn/SanaGDN is 0 custom layers"),
        ([custom(CORES[0]), custom(CORES[0]), custom(CORES[1])], r"blocks\.0\.attn/SanaGDN is 2 custom layers"),
        ([*map(custom, CORES), custom("other")], r"e: the engine has a custom layer of other, which is no GDN core"),
    ],
)
def test_a_core_that_is_no_plugin_and_a_plugin_that_is_no_core_are_named(layers: list, says: str) -> None:
    with pytest.raises(BuildError, match=says):
        check_cores("e", layers, JOB)
