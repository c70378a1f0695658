"""Other colours for an object in its input image, so that the network reads shapes and not one renderer's paint.

A dataset of a few hundred objects from one renderer teaches a network what that renderer's colours are. With
`data.recolour` the colours of the object change at random; background, silhouette and outline stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GAIN = (0.5, 1.2)  # factor of the brightness
_GAMMA = (0.6, 1.7)  # exponent of the brightness, even in its logarithm
_GREY = 0.3  # chance that an object loses its colours
_FADING = 0.5  # else: the largest share of them that it loses


@dataclass(frozen=True)
class Recolouring:
    """One change of colours.

    Attributes:
        channels: which channel becomes red, green and blue.
        grey: share in [0, 1] of the colours that is lost.
        gain: factor of the brightness.
        gamma: exponent of the brightness.
    """

    channels: tuple[int, int, int]
    grey: float
    gain: float
    gamma: float

    @classmethod
    def draw(cls, random: np.random.Generator) -> Recolouring:
        """Draw one at random."""
        red, green, blue = (int(channel) for channel in random.permutation(3))
        grey = 1.0 if random.random() < _GREY else float(random.uniform(0, _FADING))
        gamma = float(np.exp(random.uniform(*np.log(_GAMMA))))
        return cls((red, green, blue), grey, float(random.uniform(*_GAIN)), gamma)

    def apply(self, image: NDArray[np.float32], alpha: NDArray[np.uint8]) -> None:
        """Change the object's colours in place.

        Args:
            image: [3, H, W] in [0, 1], on its background.
            alpha: [H, W], of the object; where it is partly opaque, colours change by its share.

        Examples:
            >>> image = np.full((3, 1, 2), 0.5, dtype=np.float32)
            >>> darker = Recolouring(channels=(2, 0, 1), grey=0.0, gain=0.5, gamma=1.0)
            >>> darker.apply(image, np.array([[255, 0]], np.uint8))
            >>> image[:, 0].tolist()
            [[0.25, 0.5], [0.25, 0.5], [0.25, 0.5]]
        """
        inside = alpha > 0
        colours = image[:, inside]
        share = alpha[inside].astype(np.float32) / np.float32(255)
        other = colours[list(self.channels)]
        other += np.float32(self.grey) * (other.mean(0) - other)
        np.power(other, np.float32(self.gamma), out=other)
        np.clip(other * np.float32(self.gain), 0, 1, out=other)
        image[:, inside] = colours + share * (other - colours)
