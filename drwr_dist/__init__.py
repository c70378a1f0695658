"""drwr_dist: 3D point clouds from single images, learned from silhouettes alone."""

from __future__ import annotations

import typing

from drwr_dist.version import __version__

if typing.TYPE_CHECKING:
    from drwr_dist.inference import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> typing.Any:
    # `load` needs PyTorch; `import drwr_dist` alone, by a verb's --help for example, should not wait for it.
    if name == "load":
        from drwr_dist.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
