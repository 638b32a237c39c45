import pytest

from sana_build.build import BUILDERS
from sana_build.gpus import GPUS, MEASURED, PREFERRED, RUNS, choose_gpu, choose_policy
from sana_quant.policy import PRECISIONS, load_policy, shipped
from sana_runtime.engine import ENGINES
from sana_runtime.errors import ConfigError

CARDS = [gpu for gpu in GPUS.values() if gpu.sm]
GEFORCE_BLACKWELL = ("rtx5090", "rtx5080", "rtx5070ti")


@pytest.mark.parametrize(
    ("name", "precisions"),
    [
        ("cpu", {"fp32"}),
        ("rtx3090", {"bf16"}),
        ("rtx4090", {"bf16", "fp8"}),
        ("h100", {"bf16", "fp8"}),
        ("h200", {"bf16", "fp8"}),
        ("a100", {"bf16"}),
        ("b200", {"bf16", "fp8"}),
        ("rtx5090", {"bf16", "fp8", "nvfp4"}),
        ("gb10", {"bf16", "fp8", "nvfp4"}),
        ("rtx", {"bf16", "fp8", "nvfp4"}),
    ],
)
def test_what_each_card_runs(name: str, precisions: set[str]) -> None:
    assert GPUS[name].precisions == precisions


def test_a_card_with_a_choice_of_engines_runs_what_they_run() -> None:
    assert choose_gpu("b200").backend == "torch"
    assert choose_gpu("b200", "tensorrt").precisions == {"bf16", "fp8", "nvfp4"}
    with pytest.raises(ConfigError, match=r"--backend for --gpu rtx5090 .*tensorrt_rtx"):
        choose_gpu("rtx5090", "torch")


@pytest.mark.parametrize(
    ("gpu", "refused", "nearest"),
    [
        ("cpu", "mpq", "fp32"),
        ("cpu", "bf16", "fp32"),
        ("rtx3090", "fp8", "bf16"),
        ("rtx3090", "fp4", "bf16"),
        ("rtx4090", "fp4", "fp8"),
        ("h200", "mpq", "fp8"),
    ],
)
def test_a_policy_that_a_card_cannot_run_is_refused_with_the_nearest(gpu: str, refused: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"--gpu {gpu} cannot run --policy {refused}.*nearest it can is {nearest}$"):
        choose_policy(GPUS[gpu], refused, 20)


@pytest.mark.parametrize(
    ("gpu", "own"), [("cpu", "fp32"), ("rtx3090", "bf16"), ("rtx4090", "fp8"), ("rtx5090", "mpq"), ("rtx", "mpq")]
)
def test_without_a_policy_a_card_gets_its_own(gpu: str, own: str) -> None:
    assert choose_policy(GPUS[gpu], None, 8).name == own


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("policy", ["fp32", "bf16", "fp8", "fp4", "mpq"])
def test_a_policy_runs_where_all_of_its_precisions_do(gpu: str, policy: str) -> None:
    wanted = load_policy(policy, 20)
    if wanted.precisions <= GPUS[gpu].precisions:
        assert choose_policy(GPUS[gpu], policy, 20) == wanted
    else:
        with pytest.raises(ConfigError, match="cannot run"):
            choose_policy(GPUS[gpu], policy, 20)


def test_every_figure_says_where_it_is_from() -> None:
    for card in CARDS:
        figures = [card.memory, card.bandwidth, *card.tensor.values()]
        assert all(figure is not None and figure.value > 0 and figure.source for figure in figures), card.name


def test_no_card_has_a_throughput_for_what_it_does_not_run() -> None:
    for card in CARDS:
        known = {name for name, sms in RUNS.items() if card.sm in sms}
        assert card.tensor.keys() <= known, card.name


def test_published_throughput_doubles_when_the_bits_are_halved() -> None:
    """GeForce halves every product that accumulates in FP32 except those of FP4, hence a factor of four there."""
    for card in CARDS:
        tensor = {name: figure.value for name, figure in card.tensor.items() if figure.source != MEASURED}
        if {"bf16", "fp8"} <= tensor.keys():
            assert tensor["fp8"] / tensor["bf16"] == pytest.approx(2, abs=0.01), card.name
        if {"fp8", "nvfp4"} <= tensor.keys():
            factor = 4 if card.name in GEFORCE_BLACKWELL else 2
            assert tensor["nvfp4"] / tensor["fp8"] == pytest.approx(factor, abs=0.01), card.name


def test_the_table_names_only_what_exists() -> None:
    assert RUNS.keys() == PRECISIONS.keys()
    assert set(PREFERRED) < shipped().keys()
    named = {backend for gpu in GPUS.values() for backend in (gpu.backend, *gpu.others)}
    assert named == BUILDERS.keys() == ENGINES.keys()


def test_the_family_is_every_card_of_its_backend() -> None:
    members = [card.name for card in CARDS if card.backend == "tensorrt_rtx"]
    assert list(GPUS["rtx"].members) == members
    assert [card.name for card in GPUS["rtx"].cards] == members
    assert GPUS["rtx5090"].cards == (GPUS["rtx5090"],)


def test_an_unknown_card_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match="unknown --gpu 'gtx280': choose one of a100, b200, cpu, gb10, h100"):
        choose_gpu("gtx280")
