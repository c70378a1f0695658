"""The volumetric projection loss: points become voxels, rays through them a silhouette (DPC, NeurIPS 2018).

This is what DRWR does without. Points are splatted trilinearly into a grid that is aligned with the view: two axes
are those of the image, the third is depth, the cube's centre in its middle. The grid is blurred, scaled, and each
pixel's ray meets the voxels one after another. With v_k the occupancy at depth k, a ray goes through with
probability Π_k (1 - v_k); the silhouette is 1 minus that, and the loss ½ Σ over pixels of its squared difference
from the mask. The width of the blur falls during training, from coarse to fine.

"released" maps the frame to voxels [0, grid - 1] and takes every s-th pixel of the mask; "default" has half-pixel
centres and averages areas, like the rest of this package.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from drwr_dist.losses.sampling import area_average

CLIP = 1e-5  # occupancies stay this far from 0 and 1: the logarithms are finite
_WORKING_SET = 256 * 2**20  # bytes that the grids of a chunk of views may take
_GRIDS = 8  # alive at once for each view


def volumetric(
    xy: Tensor,  # [L, N, 2]
    depth: Tensor,  # [L, N]
    masks: Tensor,  # [L, H, H]
    scale: Tensor | None,  # [L]
    grid: int,
    sigma: float,
    kernel: int = 21,
    semantics: str = "default",
) -> Tensor:
    """Return ½ Σ over pixels of (mask - silhouette)² of each view.

    Args:
        xy: [L, N, 2], frame coordinates (y down); infinite for points behind the camera.
        depth: [L, N], along the camera's axis, less that of the cube's centre; sides of the unit cube.
        masks: [L, H, H] in [0, 1].
        scale: [L], factor of the occupancies in [0, 1]; None: 1.
        grid: voxels a side; divides H.
        sigma: of the blur, voxels.
        kernel: size of the blur's kernel, odd, voxels.
        semantics: default | released.

    Returns:
        [L]. Points out of the grid count for nothing and have no gradient.
    """
    step = masks.shape[-1] // grid
    targets = masks[..., ::step, ::step] if semantics == "released" else area_average(masks, grid)
    silhouettes = ray_silhouettes(xy, depth, scale, grid, sigma, kernel, semantics)
    return (targets - silhouettes).square().sum((-2, -1)) / 2


def ray_silhouettes(
    xy: Tensor,
    depth: Tensor,
    scale: Tensor | None,
    grid: int,
    sigma: float,
    kernel: int = 21,
    semantics: str = "default",
) -> Tensor:
    """Return the silhouettes [L, grid, grid] in [0, 1], row 0 on top. Arguments as `volumetric`.

    Views go through in chunks; where there is more than one, grids are computed again in the backward pass rather
    than kept, so that memory does not grow with the number of views.
    """
    coordinates, inside = voxel_coordinates(xy, depth, grid, semantics)
    factor = coordinates.new_ones(len(coordinates)) if scale is None else scale.to(coordinates.dtype)
    blur = blur_matrix(grid, sigma, kernel).to(coordinates)
    size = max(1, _WORKING_SET // (_GRIDS * grid**3 * coordinates.element_size()))
    pieces = []
    # Autocast would blur in half precision.
    with torch.autocast(coordinates.device.type, enabled=False):
        for start in range(0, max(len(coordinates), 1), size):
            part = slice(start, start + size)
            arguments = (coordinates[part], inside[part], factor[part], blur)
            if size < len(coordinates):
                pieces.append(checkpoint(_one_chunk, *arguments, use_reentrant=False))
            else:
                pieces.append(_one_chunk(*arguments))
    return torch.cat(pieces)


def voxel_coordinates(xy: Tensor, depth: Tensor, grid: int, semantics: str) -> tuple[Tensor, Tensor]:
    """Return voxel coordinates [L, N, 3] as (depth, row, column) and which points are in the grid [L, N].

    The grid holds the frame and the depths within half a side of the cube's centre, borders included.
    """
    position = torch.cat((depth[..., None] + 0.5, xy.flip(-1)), dim=-1)
    inside = ((position >= 0) & (position <= 1)).all(-1)
    # Whatever is outside, infinite or not a number becomes a place in the middle that weighs nothing.
    position = torch.where(inside[..., None], position, torch.full_like(position, 0.5))
    return (position * (grid - 1) if semantics == "released" else position * grid - 0.5), inside


def blur_matrix(grid: int, sigma: float, kernel: int) -> Tensor:
    """Return the Gaussian blur of one axis, zeros outside, as a float64 matrix [grid, grid].

    Weights exp(-x² / 2σ²) for |x| ≤ kernel // 2, normalised over the whole kernel; a product with it costs less
    than a convolution at these sizes.
    """
    reach = kernel // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    total = (-offsets.square() / (2 * sigma**2)).exp().sum()
    place = torch.arange(grid, dtype=torch.float64)
    difference = place[:, None] - place
    weights = (-difference.square() / (2 * sigma**2)).exp() / total
    return torch.where(difference.abs() <= reach, weights, torch.zeros_like(weights))


def splat(coordinates: Tensor, inside: Tensor, grid: int) -> Tensor:
    """Share out each point's weight of 1 to the eight voxels around it.

    Args:
        coordinates: [L, N, 3], voxels.
        inside: [L, N], which points have a weight.
        grid: voxels a side.

    Returns:
        [L, grid, grid, grid], the sums.
    """
    floor = coordinates.detach().floor()
    upper = coordinates - floor
    shares = torch.stack((1 - upper, upper), dim=-1)  # [L, N, 3, 2]
    places = torch.stack((floor, floor + 1), dim=-1).long()
    # A voxel out of the grid takes nothing (half-pixel centres reach half a voxel beyond the outermost ones).
    shares = shares * ((places >= 0) & (places < grid))
    places = places.clamp(0, grid - 1)
    weights = torch.einsum("lni,lnj,lnk->lnijk", *(shares[:, :, axis] for axis in range(3)))
    depth, row, column = (places[:, :, axis] for axis in range(3))
    index = depth[..., :, None, None] * grid**2 + row[..., None, :, None] * grid + column[..., None, None, :]
    weights = weights * inside[..., None, None, None]
    voxels = weights.new_zeros(len(coordinates), grid**3)
    return voxels.scatter_add(1, index.flatten(1), weights.flatten(1)).view(-1, grid, grid, grid)


def _one_chunk(coordinates: Tensor, inside: Tensor, scale: Tensor, blur: Tensor) -> Tensor:
    """Return the silhouettes of some views [l, grid, grid]."""
    grid = len(blur)
    voxels = splat(coordinates, inside, grid).clamp(0, 1)
    voxels = voxels @ blur  # columns; the matrix is symmetric
    voxels = blur @ voxels  # rows
    voxels = (blur @ voxels.flatten(2)).view_as(voxels)  # depth
    voxels = (voxels * scale[:, None, None, None]).clamp(0, 1).clamp(CLIP, 1 - CLIP)
    through = torch.log1p(-voxels).sum(1).exp()
    return 1 - through
