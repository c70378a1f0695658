"""Reading silhouettes at projected points: the released sampler and ours, in readable torch.

Coordinates here are pixels of a grid × grid image: u counts columns and v counts rows. Ours has half-pixel
centres and v = 0 at the top. The released one maps the frame to [0, grid - 1] and has v = 0 at the bottom.
Images carry no gradient; coordinates do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d


def released_image(masks: Tensor, grid: int) -> Tensor:
    """Return what the released code samples: every s-th pixel, s = H / grid, flipped up-down.

    TensorFlow's legacy resize (no half-pixel centres) averages nothing when it divides the size.

    Args:
        masks: [L, H, H].
        grid: pixels, divides H.

    Returns:
        [L, grid, grid], row 0 at the bottom.
    """
    step = masks.shape[-1] // grid
    return masks[..., ::step, ::step].flip(-2)


def released_coordinates(xy: Tensor, grid: int) -> Tensor:
    """Return the released pixel coordinates of frame coordinates: clipped to the frame, times grid - 1.

    Points out of the frame stick to its border without a gradient on that axis; on the border itself the
    gradient passes, in torch's clamp as in TensorFlow's clip_by_value.

    Args:
        xy: [L, N, 2], frame coordinates (y down), finite.
        grid: pixels.

    Returns:
        [L, N, 2], (u, v) in [0, grid - 1], v up.
    """
    x_image, y_image = xy[..., 0] - 0.5, 0.5 - xy[..., 1]
    centred = torch.stack((x_image, y_image), dim=-1)
    return (centred.clamp(-0.5, 0.5) + 0.5) * (grid - 1)


def released_samples(image: Tensor, coordinates: Tensor, radii: int) -> Tensor:
    """Sample the four corners of squares around each point as the released code does: S_r, r = 0 … radii-1.

    Per axis with M = grid - 1 and C = clip to [0, M]: i0 = C(floor(u - r)) with weight i1 - C(u + r), and
    i1 = C(floor(u + r) + 1) with weight C(u - r) - i0. Inside the image the weights are 1 - frac(u) and
    frac(u). At borders they are not renormalised: at u = M both are 0. S_0 is plain bilinear inside the
    frame.

    Args:
        image: [L, grid, grid], row 0 at the bottom.
        coordinates: [L, N, 2], (u, v) in [0, grid - 1].
        radii: number of radii.

    Returns:
        [L, N, radii].
    """
    last = image.shape[-1] - 1
    radius = torch.arange(radii, device=image.device, dtype=coordinates.dtype)
    near, far = coordinates[..., None] - radius, coordinates[..., None] + radius  # [L, N, 2, R]
    low, high = near.detach().floor().clamp(0, last), (far.detach().floor() + 1).clamp(0, last)
    low_weight, high_weight = high - far.clamp(0, last), near.clamp(0, last) - low
    columns = (low[:, :, 0].long(), high[:, :, 0].long())
    rows = (low[:, :, 1].long(), high[:, :, 1].long())
    column_weights = (low_weight[:, :, 0], high_weight[:, :, 0])
    row_weights = (low_weight[:, :, 1], high_weight[:, :, 1])
    total = torch.zeros_like(low_weight[:, :, 0])
    for a in range(2):
        for b in range(2):
            total = total + row_weights[a] * column_weights[b] * _pick(image, rows[a], columns[b])
    return total


def area_average(masks: Tensor, grid: int) -> Tensor:
    """Return masks [L, H, H] averaged over blocks of H / grid pixels: [L, grid, grid], row 0 on top."""
    step = masks.shape[-1] // grid
    return masks if step == 1 else avg_pool2d(masks[:, None], step)[:, 0]


def pixel_coordinates(xy: Tensor, grid: int) -> Tensor:
    """Return the pixel coordinates of frame coordinates: xy · grid - ½, the same points for every grid.

    The centre of pixel (r, c) is at (u, v) = (c, r). Nothing is clipped.

    Args:
        xy: [L, N, 2], frame coordinates (y down), finite.
        grid: pixels.

    Returns:
        [L, N, 2], (u, v), v down.
    """
    return xy * grid - 0.5


def bilinear_in_border(image: Tensor, coordinates: Tensor) -> Tensor:
    """Sample bilinearly; beyond the centres of the outermost pixels, the nearest of them counts.

    Args:
        image: [L, grid, grid], row 0 on top.
        coordinates: [L, N, 2], (u, v) of `pixel_coordinates`.

    Returns:
        [L, N].
    """
    last = image.shape[-1] - 1
    coordinates = coordinates.clamp(0, last)
    # On the last centre itself, blend with the pixel before it, so that the gradient there is one-
    # sided, not wrong.
    return _bilinear(image, coordinates, coordinates.detach().floor().clamp(max=last - 1))


def bilinear_in_zeros(image: Tensor, coordinates: Tensor) -> Tensor:
    """Sample bilinearly; outside the image there are zeros, so the value fades out over one pixel.

    Args and result as `bilinear_in_border`.
    """
    coordinates = coordinates.clamp(-1, image.shape[-1])
    return _bilinear(image, coordinates, coordinates.detach().floor())


def _bilinear(image: Tensor, coordinates: Tensor, floor: Tensor) -> Tensor:
    """Blend the corners by 1 - frac and frac."""
    fraction, low = coordinates - floor, floor.long()  # [L, N, 2]
    (left, top), (right, bottom) = low.unbind(-1), (low + 1).unbind(-1)
    above = torch.lerp(_corner(image, top, left), _corner(image, top, right), fraction[..., 0])
    below = torch.lerp(_corner(image, bottom, left), _corner(image, bottom, right), fraction[..., 0])
    return torch.lerp(above, below, fraction[..., 1])


def _corner(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at rows, columns [L, N]; zero outside the image."""
    last = image.shape[-1] - 1
    within = (rows >= 0) & (rows <= last) & (columns >= 0) & (columns <= last)
    return _pick(image, rows.clamp(0, last), columns.clamp(0, last)) * within


def _pick(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return image [L, G, G] at integer rows, columns [L, …]: [L, …]."""
    flat = (rows * image.shape[-1] + columns).flatten(1)
    return image.flatten(1).gather(1, flat).view(rows.shape)
