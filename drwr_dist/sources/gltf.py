"""What a glTF file asks of its reader: found out before trimesh reads it."""

from __future__ import annotations

import json
from typing import Any

from drwr_dist.errors import DataError

MAX_NODES = 20_000  # trimesh needs 0.3 ms for each
MAX_STEPS = 500_000  # from every node with a mesh up to its root, together; each is a product of matrices
_COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")


def check_gltf(data: bytes) -> None:
    """Refuse what would be read wrongly or take forever; anything that is no glTF is left to the parser.

    Args:
        data: a .glb or .gltf file.

    Raises:
        DataError: a scene of too many nodes or too deep, a cycle of nodes, or geometry that trimesh takes for another.
    """
    try:
        tree = json.loads(_json_of(data))
        nodes = list(tree.get("nodes", ()))
        required = [name for name in tree.get("extensionsRequired", ()) if name in _COMPRESSED]
        steps, normalised = _steps(nodes), _normalised(tree)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        return
    if required:
        raise DataError(f"its geometry is compressed ({required[0]}), which is not read; export it without")
    if normalised:
        raise DataError("its positions are normalised integers (KHR_mesh_quantization), not read; export floats")
    if steps < 0:
        raise DataError("the nodes of the scene form a cycle")
    if len(nodes) > MAX_NODES or steps > MAX_STEPS:
        raise DataError(
            f"the scene is too large or too deep: {len(nodes)} nodes (at most {MAX_NODES}), {steps} steps from its "
            f"meshes to the root (at most {MAX_STEPS}); join its parts"
        )


def _json_of(data: bytes) -> bytes:
    """Return the description in a file: the first chunk of a .glb, after 12 bytes for the file and 8 for the chunk."""
    if data[:4] != b"glTF":
        return data
    return data[20 : 20 + int.from_bytes(data[12:16], "little")]


def _steps(nodes: list[Any]) -> int:
    """Return how many steps lead from all nodes with a mesh to their roots, together; -1 where they never end."""
    parent = {child: number for number, node in enumerate(nodes) for child in node.get("children", ())}
    depth: dict[int, int] = {}
    for number in range(len(nodes)):
        path = [number]
        while path[-1] in parent and path[-1] not in depth:
            path.append(parent[path[-1]])
            if len(path) > len(nodes) + 1:
                return -1
        top = path.pop()
        height = depth.setdefault(top, 0)
        for node in reversed(path):
            height += 1
            depth[node] = height
    return sum(depth[number] for number, node in enumerate(nodes) if "mesh" in node)


def _normalised(tree: dict[str, Any]) -> bool:
    """Say whether positions are integers that stand for -1 … 1; trimesh takes them as they are."""
    primitives = [part for mesh in tree.get("meshes", ()) for part in mesh.get("primitives", ())]
    places = {part["attributes"]["POSITION"] for part in primitives if "POSITION" in part.get("attributes", {})}
    return any(tree["accessors"][place].get("normalized") for place in places)
