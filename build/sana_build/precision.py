"""The assertion behind every mixed-precision engine: each layer of the policy runs in the precision it was given."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sana_build.layer_table import EngineLayer, products_of
from sana_quant.policy import OUTSIDE
from sana_runtime.errors import BuildError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Requested:
    """One policy entry: the module path, which is also the name of its MatMul node, with its group and precision."""

    path: str
    group: str
    precision: str

    @property
    def narrow(self) -> bool:
        """Whether the layer is quantised, and so needs a calibrated range."""
        return self.precision not in OUTSIDE


@dataclass(frozen=True)
class GroupRow:
    """The layers of one group in one precision: how many were `requested` and `found`, and in how many GEMMs."""

    group: str
    precision: str
    requested: int
    found: int
    gemms: int


def check_precisions(engine: str, layers: Sequence[EngineLayer], wanted: Iterable[Requested]) -> list[GroupRow]:
    """One row per group and precision; raises BuildError naming the first layer that runs in another precision.

    TensorRT computes a product that it has no kernel for in a wider type, and says nothing about it.
    """
    groups: dict[tuple[str, str], list[list[EngineLayer]]] = {}
    faults = []
    for entry in wanted:
        products = products_of(layers, entry.path)
        groups.setdefault((entry.group, entry.precision), []).append(products)
        if fault := _fault(entry, products):
            faults.append(fault)
    if faults:
        others = f" ({len(faults) - 1} more layers like it)" if len(faults) > 1 else ""
        raise BuildError(f"{engine}: {faults[0]}{others}")
    return [_row(*key, found) for key, found in groups.items()]


def check_stored(engine: str, stored: Mapping[str, str], wanted: Iterable[Requested]) -> list[GroupRow]:
    """As check_precisions, for an engine whose products take the precision of the weights that are `stored`, by path.

    Raises BuildError naming the first layer whose weights have another precision.
    """
    groups: dict[tuple[str, str], int] = {}
    for entry in wanted:
        found = stored.get(entry.path, "none")
        if found != entry.precision:
            raise BuildError(
                f"{engine}: the weights of {entry.path} ({entry.group}) are stored in {found} and the policy says "
                f"{entry.precision}"
            )
        key = entry.group, entry.precision
        groups[key] = groups.get(key, 0) + 1
    return [GroupRow(*key, count, count, count) for key, count in groups.items()]


def _fault(entry: Requested, products: Sequence[EngineLayer]) -> str | None:
    layer = f"{entry.path} ({entry.group})"
    if not products:
        return f"no matrix product of the engine comes from {layer}, which the policy puts in {entry.precision}"
    for product in products:
        if not runs_in(product, entry.precision):
            found = product.inputs[0] if product.inputs else "an unknown precision"
            return f"{layer} runs in {found} and the policy says {entry.precision} (engine layer {product.name})"
    return None


def runs_in(layer: EngineLayer, precision: str) -> bool:
    return layer.inputs[:1] == (precision,)


def _row(group: str, precision: str, found: Sequence[Sequence[EngineLayer]]) -> GroupRow:
    running = [products for products in found if products]
    names = {product.name for products in running for product in products}
    return GroupRow(group, precision, len(found), len(running), len(names))


def precision_table(rows: Iterable[GroupRow], title: str) -> "Table":
    """The rows for a person."""
    from rich.table import Table

    table = Table("group", "precision", "requested", "found", "GEMMs", title=title)
    for row in rows:
        table.add_row(row.group, row.precision, str(row.requested), str(row.found), str(row.gemms))
    return table
