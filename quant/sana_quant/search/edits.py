"""Policies made from policies: all layers in one precision, some layers changed, a key, and the TOML of a result."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from sana_quant.groups import GROUPS, block_ranges
from sana_quant.policy import Policy


def uniform(precision: str, depth: int, outside: str) -> Policy:
    """Every group of `depth` blocks in one precision."""
    return Policy(precision, f"the ten groups in {precision}", outside, dict.fromkeys(GROUPS, (precision,) * depth))


def changed(policy: Policy, groups: Iterable[str], blocks: Iterable[int], precision: str) -> Policy:
    """The policy with these groups of these blocks in another precision."""
    chosen = set(blocks)
    groups = {
        group: tuple(precision if block in chosen else old for block, old in enumerate(policy.groups[group]))
        for group in groups
    }
    return replace(policy, groups={**policy.groups, **groups})


def named(policy: Policy, name: str, title: str) -> Policy:
    return replace(policy, name=name, title=title)


def depth_of(policy: Policy) -> int:
    return len(next(iter(policy.groups.values())))


def signature(policy: Policy) -> str:
    """A key of what the policy does, whatever it is called."""
    content = [policy.outside, *([group, list(policy.groups[group])] for group in GROUPS)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def short(policy: Policy, base: str) -> str:
    """What differs from all groups in `base`, as "SA-Q + SA-K nvfp4, FFN-Input nvfp4 middle deep"."""
    alike: dict[str, list[str]] = {}
    for group, precisions in policy.groups.items():
        for precision in sorted(set(precisions) - {base}):
            where = "" if len(set(precisions)) == 1 else f" {' '.join(_ranges(precisions, precision))}"
            alike.setdefault(precision + where, []).append(group)
    parts = (f"{'all' if len(groups) == len(GROUPS) else ' + '.join(groups)} {what}" for what, groups in alike.items())
    return ", ".join(parts) or f"all {base}"


def to_toml(policy: Policy) -> str:
    """The policy as a file that load_policy reads back for a transformer of the same depth."""
    default = Counter(precision for blocks in policy.groups.values() for precision in blocks).most_common(1)[0][0]
    entries = {group: _entry(blocks, default) for group, blocks in policy.groups.items()}
    lines = [f"{group} = {entry}" for group, entry in entries.items() if entry]
    head = {"title": policy.title, "default": default, "outside": policy.outside}
    table = ["", "[groups]", *lines] if lines else []
    return "\n".join([*(f"{key} = {json.dumps(value)}" for key, value in head.items()), *table]) + "\n"


def _entry(blocks: tuple[str, ...], default: str) -> str:
    """A group's line, empty where all blocks are in the default."""
    kinds = sorted(set(blocks))
    if len(kinds) == 1:
        return "" if kinds[0] == default else json.dumps(kinds[0])
    pairs = [f'{where} = "{kind}"' for kind in kinds if kind != default for where in _ranges(blocks, kind)]
    return "{ " + ", ".join(pairs) + " }"


def _ranges(blocks: tuple[str, ...], precision: str) -> list[str]:
    """The blocks in `precision`, by the names of ranges where these fit: a model of another depth reads those too."""
    names = block_ranges(len(blocks))
    if all(len({blocks[block] for block in span}) == 1 for span in names.values()):
        return [name for name, span in names.items() if blocks[span[0]] == precision]
    return [str(block) for block, kind in enumerate(blocks) if kind == precision]
