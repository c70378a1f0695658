"""The objective and its parts, pure functions."""

from drwr_dist.losses.coverage import silhouette_places
from drwr_dist.losses.objective import DrwrLoss, count_left_out, drwr_loss
from drwr_dist.losses.repulsion import repulsion_plain
from drwr_dist.losses.repulsion_by_grid import repulsion_gridded
from drwr_dist.losses.repulsion_by_series import repulsion_fourier
from drwr_dist.losses.training import training_loss

__all__ = [
    "DrwrLoss",
    "count_left_out",
    "drwr_loss",
    "repulsion_fourier",
    "repulsion_gridded",
    "repulsion_plain",
    "silhouette_places",
    "training_loss",
]
