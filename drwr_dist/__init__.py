"""drwr_dist: 3D point clouds from single images, learned from silhouettes alone."""

from drwr_dist.version import __version__

__all__ = ["__version__"]
