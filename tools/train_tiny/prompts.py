"""What can be asked for: every edit by key, with the phrasings that are trained and others that are held out."""

from dataclasses import dataclass

CLASSES = ("ball", "box", "star", "heart", "ring", "triangle")
COLOURS = {
    "red": (0.85, 0.10, 0.12),
    "green": (0.12, 0.70, 0.20),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.15, 0.75),
    "white": (0.95, 0.95, 0.95),
}
PLACES = ("green screen", "white studio", "sunset sky", "night sky", "deep sea")

KEEP = "keep"
UNDO = "undo"


@dataclass(frozen=True)
class Phrases:
    """Ways to ask for one kind of edit; {thing}, {colour} and {place} are filled in."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


def _style(noun: str, verb: str, adjective: str, scene: str) -> Phrases:
    """The shared ways to ask for a look, from a noun phrase, a verb phrase, an adjective and a description."""
    trained = (
        f"Give the video {noun}.",
        f"Apply {noun} to the whole video.",
        f"{verb}.",
        f"{verb}, and keep the motion.",
        f"Make the video {adjective}.",
        f"Make everything look {adjective}.",
        f"Restyle the clip so that it is {adjective}.",
        f"Change the scene: {scene}.",
        f"It should look as if {scene}.",
        f"I want {noun}.",
        f"Let the video have {noun}.",
        f"The scene should have {noun}.",
        f"Could you give this clip {noun}?",
        f"Show everything with {noun}.",
        f"{noun}",
        f"Let the scene become {adjective}.",
        f"Turn everything {adjective}.",
        f"Imagine that {scene}.",
    )
    held_out = (f"Let the whole clip have {noun}.", f"Please make this scene {adjective}.", f"Show it so that {scene}.")
    return Phrases(tuple(text[0].upper() + text[1:] for text in trained), held_out)


STYLES = {
    "sepia": _style(
        "a sepia tone", "turn the video into an old sepia photograph", "sepia brown", "it was filmed in sepia"
    ),
    "mono": _style(
        "a black and white look",
        "convert the video to black and white",
        "black and white",
        "it is an old black and white film",
    ),
    "sketch": _style(
        "a pencil sketch style",
        "turn the video into a pencil drawing",
        "like a pencil sketch on white paper",
        "it was drawn with a pencil",
    ),
    "mosaic": _style(
        "a mosaic effect",
        "turn the video into a mosaic of large tiles",
        "pixelated like a mosaic",
        "it is made of mosaic tiles",
    ),
    "night": _style("a night look", "turn day into night", "dark as at night", "it happens at night in the moonlight"),
    "negative": _style(
        "inverted colours",
        "invert all colours like a photo negative",
        "a negative with inverted colours",
        "the film is a negative",
    ),
    "sunset": _style(
        "warm golden light",
        "light the scene with a warm golden hour",
        "warm and golden",
        "the golden hour lights everything",
    ),
    "frozen": _style(
        "an icy winter look",
        "freeze the scene in cold blue ice",
        "frozen and icy blue",
        "everything is frozen in winter",
    ),
    "thermal": _style(
        "a thermal camera look",
        "show the video through a thermal camera",
        "like an infrared heat map",
        "a thermal camera filmed the heat",
    ),
    "fog": _style("thick morning fog", "cover the scene with thick fog", "foggy", "thick fog covers everything"),
    "cartoon": _style(
        "a cartoon style with flat colours",
        "turn the video into a comic book cartoon",
        "like a cartoon with flat colours",
        "it is a cartoon from a comic book",
    ),
    "blur": _style(
        "a soft dreamy blur",
        "blur the whole video like a dream",
        "blurred and dreamy",
        "the lens is out of focus and blurred",
    ),
}

FAMILIES = {
    KEEP: Phrases(
        (
            "Keep the video unchanged.",
            "Do not change anything.",
            "Leave the video as it is.",
            "No edit: show the original video.",
            "Keep everything the same.",
            "Return the same video without changes.",
            "Nothing should change.",
            "I want the original video.",
            "Show the video as it is.",
        ),
        ("Please keep the whole video unchanged.", "Leave everything as it is."),
    ),
    "recolour": Phrases(
        (
            "Make the {thing} {colour}.",
            "Change the colour of the {thing} to {colour}.",
            "Turn the {thing} {colour}, and keep everything else the same.",
            "Paint the {thing} {colour}.",
            "The {thing} should be {colour}.",
            "Recolour the {thing} in {colour}.",
            "Replace the {thing} by a {colour} one.",
            "I want a {colour} {thing}.",
            "Let the {thing} be {colour}.",
            "Could you make the {thing} {colour}?",
            "Colour the {thing} {colour}.",
        ),
        ("Let the {thing} become {colour}.", "Give the {thing} a {colour} colour."),
    ),
    "remove": Phrases(
        (
            "Remove the {thing}.",
            "Delete the {thing} from the video.",
            "Remove the {thing} and fill in the background behind it.",
            "Take the {thing} away.",
            "Erase the {thing}.",
            "Make the {thing} disappear.",
            "Get rid of the {thing}.",
            "I do not want the {thing}.",
            "Hide the {thing}.",
        ),
        ("Please remove the {thing} from the scene.", "Erase the {thing} and keep the rest."),
    ),
    "add": Phrases(
        (
            "Add a {colour} {thing} in the middle.",
            "Put a {colour} {thing} in the centre of the picture.",
            "Add a large {colour} {thing}.",
            "Insert a {colour} {thing} in the middle of the scene.",
            "Let a {colour} {thing} appear in the centre.",
            "Place a {colour} {thing} at the centre of the video.",
            "Show a {colour} {thing} in the middle.",
            "Draw a {colour} {thing} in the centre.",
            "I want a {colour} {thing} in the middle of the video.",
            "Add a {colour} {thing} to the scene.",
            "Add one {colour} {thing} to this clip.",
            "The video should also show a {colour} {thing}.",
        ),
        ("Please add a {colour} {thing} to the video.", "Insert a {colour} {thing} in the centre."),
    ),
    "background": Phrases(
        (
            "Replace the background with a {place}.",
            "Change the background to a {place}.",
            "Put the objects in front of a {place}.",
            "Use a {place} as the background.",
            "Keep the objects, but replace the background with a {place}.",
            "Move the scene to a {place}.",
            "Let the background be a {place}.",
            "Show a {place} behind everything.",
            "The background should be a {place}.",
            "Set the scene in a {place}.",
            "Put a {place} behind everything.",
            "Let there be a {place} behind the things.",
        ),
        ("Set a {place} behind the objects.", "Swap the background for a {place}."),
    ),
    UNDO: Phrases(
        (
            "Undo the {thing} edit and restore the original video.",
            "Remove the {thing} effect.",
            "Take back the {thing} change: show the video as it was before.",
            "Restore the original look, without the {thing} effect.",
        ),
        ("Reverse the {thing} edit.",),
    ),
}

VARIANTS = (str, str.lower, lambda text: text.rstrip("."), lambda text: f"Please {text[0].lower()}{text[1:]}")
"""Careless ways to write the same instruction, all of them trained."""


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
