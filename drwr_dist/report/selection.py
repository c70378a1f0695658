"""Which objects a report shows in 3D, and how many of their views: as many as a browser opens at once. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SHOWN = 200  # objects
BYTES = 8_000_000  # of point clouds in a report, before base64
POINT_BYTES = 7  # three 16-bit coordinates, and a distance of 8 bits

# (metric, whether less is better): what objects are ordered by is the first that they have
ERRORS = (("chamfer", True), ("silhouette_iou", False))


def error_metric(objects: Mapping[str, Mapping[str, float]]) -> tuple[str, bool] | None:
    """Return the metric that orders these objects and whether less is better; None where they have none."""
    for name, less in ERRORS:
        if any(name in row for row in objects.values()):
            return name, less
    return None


def by_error(objects: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the keys from the best object to the worst; those without a score come last."""
    found = error_metric(objects)
    if found is None:
        return sorted(objects)
    name, less = found
    sign = 1 if less else -1
    return sorted(objects, key=lambda key: (sign * objects[key].get(name, sign * np.inf), key))


def shown_objects(objects: Mapping[str, Mapping[str, float]], limit: int = SHOWN) -> list[str]:
    """Choose the objects to show: the best quarter of `limit`, the worst quarter, and others evenly between."""
    order = by_error(objects)
    if len(order) <= limit:
        return order
    ends = limit // 4
    middle = order[ends : len(order) - ends]
    between = [middle[place] for place in np.linspace(0, len(middle) - 1, limit - 2 * ends).round().astype(int)]
    return order[:ends] + between + order[len(order) - ends :]


def shown_views(objects: int, views: int, points: int) -> int:
    """Say of how many input views the predictions fit into a report: at least 1, at most all."""
    return int(np.clip(BYTES // max(1, 2 * POINT_BYTES * objects * points), 1, views))
