"""Cars of the racing game TORCS: a body (`.acc`), and four wheels that the car's XML file places."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import Mesh

# +Z of a wheel model is its outer side, its radius and half width are 0.5; cars are +X front, +Y up, +Z right.
_ENDS, _SIDES = ("Front", "Rear"), ("Right", "Left")
_METRES = {"": 1.0, "m": 1.0, "mm": 1e-3, "cm": 1e-2, "in": 0.0254, "inches": 0.0254, "ft": 0.3048}


def wheel_set(xml: str) -> str | None:
    """Return the folder of wheel models that a car's XML names, or None."""
    found = re.search(r'name="3d wheel directory"[^>]*\sval="([A-Za-z0-9_-]+)"', _without_comments(xml))
    return found[1] if found else None


def assemble(body: Mesh, wheel: Mesh, xml: str) -> Mesh:
    """Attach wheels to a car's body.

    Args:
        body: +X front, +Y up, +Z right, in metres; the ground is at y = 0.
        wheel: radius 0.5, width 1, axle along z, outer side at +z.
        xml: the car's description: axles, track, rims and tyres.

    Returns:
        Body and wheels; grey where only one of them has colours.

    Raises:
        DataError: a measure of a wheel is missing.
    """
    text = _without_comments(xml)
    parts = [body, *(_placed(wheel, text, end, side) for end in _ENDS for side in _SIDES)]
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)]),
        None if any(part.colours is None for part in parts) else np.concatenate([_colours(part) for part in parts]),
    )


def _colours(part: Mesh) -> NDArray[np.uint8]:
    assert part.colours is not None
    return part.colours


def _placed(wheel: Mesh, xml: str, end: str, side: str) -> Mesh:
    """Return one wheel, scaled and put on its axle; it touches the ground."""
    section = f"{end} {side} Wheel"
    radius = _number(xml, section, "rim diameter") / 2
    width = _number(xml, section, "tire width")
    radius += width * _number(xml, section, "tire height-width ratio")
    outward = 1.0 if side == "Right" else -1.0
    centre = np.array([_number(xml, f"{end} Axle", "xpos"), radius, -_number(xml, section, "ypos")])  # y is left there
    turn = np.array([outward, 1.0, outward])  # half a turn about the vertical axis
    return Mesh(wheel.vertices * turn * (2 * radius, 2 * radius, width) + centre, wheel.faces, wheel.colours)


def _without_comments(xml: str) -> str:
    return re.sub(r"<!--.*?-->", "", xml, flags=re.DOTALL)


def _number(xml: str, section: str, name: str) -> float:
    """Read a measure in metres; sections of wheels and axles hold no further ones."""
    block = re.search(rf'<section\s+name="{section}"\s*>(.*?)</section>', xml, re.DOTALL)
    for tag in re.findall(r"<attnum\s([^>]*)>", block[1] if block else ""):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if attributes.get("name") == name:
            try:
                return float(attributes["val"]) * _METRES[attributes.get("unit", "")]
            except (KeyError, ValueError):
                break
    raise DataError(f"{section}: {name} is missing or has an unknown unit")
