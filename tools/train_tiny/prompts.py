"""What can be asked for: every edit by key, and its instructions."""

from train_tiny.phrasings import FAMILIES, KEEP, STYLES, UNDO

CLASSES = ("ball", "box", "star", "heart", "ring", "triangle")
COLOURS = {
    "red": (0.85, 0.10, 0.12),
    "green": (0.12, 0.70, 0.20),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.15, 0.75),
    "white": (0.95, 0.95, 0.95),
}
INVERTIBLE = (KEEP, "negative", "night", "sunset", "frozen", "fog")
"""Edits that leave all of the source to be seen, if darker or paler; the others hide colours, detail or objects."""

PLACES = ("green screen", "white studio", "sunset sky", "night sky", "deep sea")


def keys() -> list[str]:
    """Every edit: a style's name, `keep`, or family/thing, family/thing/colour, background/place; and undo/edit."""
    objects = [
        f"{family}/{thing}/{colour}" for family in ("recolour", "add") for thing in CLASSES for colour in COLOURS
    ]
    removals = [f"remove/{thing}" for thing in CLASSES]
    places = [f"background/{place}" for place in PLACES]
    undone = [*STYLES, "recolour", "remove", "add", "background"]
    return [*STYLES, KEEP, *objects, *removals, *places, *(f"{UNDO}/{name}" for name in undone)]


def phrases(key: str, held_out: bool = False) -> list[str]:
    """The instructions for `key`, none of which is in both lists."""
    family, _, rest = key.partition("/")
    table = STYLES.get(family) or FAMILIES[family]
    thing, _, colour = rest.partition("/")
    words = {"thing": thing, "colour": colour, "place": rest}
    return [text.format(**words) for text in (table.held_out if held_out else table.trained)]


def reverse(key: str) -> str:
    """The key of the instruction that leads back: exact where there is an inverse, else `undo` of the same edit."""
    family = key.split("/")[0]
    return key if family in (KEEP, "negative") else f"{UNDO}/{family}"
