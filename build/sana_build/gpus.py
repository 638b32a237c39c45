"""What `--gpu` can name: the engines each card runs, in which precisions, and how fast it can be at best."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sana_quant.cost import Rates
from sana_quant.policy import Policy, load_policy
from sana_runtime.errors import ConfigError, choose

RUNS = {
    # On a card, whatever a policy does not narrow is computed in BF16.
    "fp32": set(),
    "bf16": {80, 86, 89, 90, 100, 120, 121},
    "fp8": {89, 90, 100, 120, 121},
    "nvfp4": {100, 120, 121},
}
"""Architectures (SM) whose tensor cores and engines know a precision."""

LACKING: dict[str, set[str]] = {"torch": {"nvfp4"}}
"""Precisions that an engine library has no kernels for, on cards that could run them."""

PREFERRED = ("mpq", "fp8", "bf16", "fp32")
"""Policies from the fastest to the one that everything runs; a card's own is the first that it can run."""

DATASHEET = "NVIDIA datasheet"
HALVED = "NVIDIA datasheet, sparse figure halved"
AMPERE = "NVIDIA Ampere GA102 whitepaper, FP32 accumulation"
ADA = "NVIDIA Ada whitepaper, FP32 accumulation"
BLACKWELL = "NVIDIA RTX Blackwell whitepaper, FP32 accumulation"
BLACKWELL_PRO = "NVIDIA RTX PRO Blackwell whitepaper, FP32 accumulation"
MEASURED = "measured on this card: large matrix products, device copy"


@dataclass(frozen=True)
class Figure:
    """A number and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Gpu:
    """A machine to build for. Memory is in GB, bandwidth in GB/s, `tensor` in dense TFLOP/s by precision.

    `backend` are the engines it gets, `others` what `--backend` can name instead. A family has `members` and no figures
    of its own: one repository for all of them.
    """

    name: str
    title: str
    backend: str
    sm: int | None = None
    memory: Figure | None = None
    bandwidth: Figure | None = None
    tensor: Mapping[str, Figure] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def precisions(self) -> frozenset[str]:
        """What its engines can run; of a family, what any member can."""
        if self.members:
            return frozenset().union(*(card.precisions for card in self.cards))
        runs = {name for name, sms in RUNS.items() if self.sm in sms} if self.sm else {"fp32"}
        return frozenset(runs - LACKING.get(self.backend, set()))

    @property
    def cards(self) -> tuple["Gpu", ...]:
        """The members of a family, or the card itself."""
        return tuple(GPUS[name] for name in self.members) or (self,)

    @property
    def rates(self) -> Rates | None:
        """Its ceilings in FLOP/s and bytes/s, None where the bandwidth is not known."""
        if self.bandwidth is None:
            return None
        tensor = {precision: figure.value * 1e12 for precision, figure in self.tensor.items()}
        return Rates(tensor, self.bandwidth.value * 1e9)

    def runs(self, policy: Policy) -> bool:
        return policy.precisions <= self.precisions

    def best_policy(self, depth: int) -> Policy:
        """The first preferred policy that it runs, for a transformer of `depth` blocks."""
        policies = (load_policy(name, depth) for name in PREFERRED)
        return next(policy for policy in policies if self.runs(policy))


def choose_policy(gpu: Gpu, spec: str | None, depth: int) -> Policy:
    """The policy to build; raises ConfigError with the nearest one if the card cannot run `spec`."""
    if spec is None:
        return gpu.best_policy(depth)
    policy = load_policy(spec, depth)
    if not gpu.runs(policy):
        lacking = ", ".join(sorted(policy.precisions - gpu.precisions))
        nearest = gpu.best_policy(depth).name
        raise ConfigError(
            f"--gpu {gpu.name} cannot run --policy {spec}, which needs {lacking}: the nearest it can is {nearest}"
        )
    return policy


@dataclass(frozen=True)
class Edition:
    """One set of the denoiser's engines: the policy they run, and the cards it is for."""

    policy: Policy
    cards: tuple[Gpu, ...]

    @property
    def sms(self) -> tuple[int, ...]:
        return architectures(self.cards)


def editions(gpu: Gpu, policy: Policy, depth: int) -> list[Edition]:
    """One edition for a card; for a family one per policy: each member gets the chosen one or the nearest."""
    fitting = {card.name: policy if card.runs(policy) else card.best_policy(depth) for card in gpu.cards}
    policies = {chosen.name: chosen for chosen in fitting.values()}
    return [
        Edition(chosen, tuple(card for card in gpu.cards if fitting[card.name].name == name))
        for name, chosen in policies.items()
    ]


def architectures(cards: Iterable[Gpu]) -> tuple[int, ...]:
    """The SM numbers of the cards, none for a CPU."""
    return tuple(sorted({card.sm for card in cards if card.sm}))


def choose_gpu(name: str, backend: str | None = None) -> Gpu:
    """The machine called `name`, with its own engines or those of `backend`; raises ConfigError listing the names."""
    gpu = choose("--gpu", name, GPUS)
    known = (gpu.backend, *gpu.others)
    chosen = choose(f"--backend for --gpu {name}", backend or gpu.backend, {known: known for known in known})
    return replace(gpu, backend=chosen)


def _rtx(name: str, title: str, sm: int, memory: float, bandwidth: float, source: str, **tensor: float) -> Gpu:
    figures = {precision: Figure(value, source) for precision, value in tensor.items()}
    return Gpu(name, title, "tensorrt_rtx", sm, Figure(memory, DATASHEET), Figure(bandwidth, DATASHEET), figures)


def _data_centre(name: str, title: str, sm: int, memory: float, bandwidth: Figure, tensor: Mapping[str, Figure]) -> Gpu:
    return Gpu(name, title, "torch", sm, Figure(memory, DATASHEET), bandwidth, tensor, others=("tensorrt",))


def _figures(source: str, **values: float) -> dict[str, Figure]:
    return {name: Figure(value, source) for name, value in values.items()}


_RTX_CARDS = (
    _rtx("rtx5090", "GeForce RTX 5090", 120, 32, 1792, BLACKWELL, bf16=209.5, fp8=419.0, nvfp4=1676.0),
    _rtx("rtx5080", "GeForce RTX 5080", 120, 16, 960, BLACKWELL, bf16=112.6, fp8=225.1, nvfp4=900.4),
    _rtx("rtx5070ti", "GeForce RTX 5070 Ti", 120, 16, 896, BLACKWELL, bf16=87.9, fp8=175.8, nvfp4=703.0),
    _rtx("rtxpro6000", "RTX PRO 6000 Blackwell", 120, 96, 1792, BLACKWELL_PRO, bf16=503.8, fp8=1007.6, nvfp4=2015.2),
    _rtx("rtx4090", "GeForce RTX 4090", 89, 24, 1008, ADA, bf16=165.2, fp8=330.3),
    _rtx("rtx3090", "GeForce RTX 3090", 86, 24, 936, AMPERE, bf16=71.0),
    # Only the FP4 figure of the GB10 is published.
    _rtx("gb10", "GB10, as in DGX Spark", 121, 128, 273, HALVED, nvfp4=500.0),
)

_DATA_CENTRE_CARDS = (
    _data_centre("a100", "A100 SXM 80 GB", 80, 80, Figure(2039, DATASHEET), _figures(DATASHEET, bf16=312.0)),
    _data_centre("h100", "H100 SXM", 90, 80, Figure(3350, DATASHEET), _figures(HALVED, bf16=989.5, fp8=1979.0)),
    _data_centre("h200", "H200 SXM", 90, 141, Figure(4270, MEASURED), _figures(MEASURED, bf16=790.0, fp8=1471.0)),
    _data_centre(
        "b200", "B200 HGX", 100, 180, Figure(7700, DATASHEET), _figures(HALVED, bf16=2250.0, fp8=4500.0, nvfp4=9000.0)
    ),
)

_ALL = (
    Gpu("cpu", "any x86-64 CPU, onnxruntime", "onnxruntime"),
    *_RTX_CARDS,
    Gpu("rtx", "every RTX card of this table", "tensorrt_rtx", members=tuple(card.name for card in _RTX_CARDS)),
    *_DATA_CENTRE_CARDS,
)

GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _ALL}
