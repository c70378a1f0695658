"""First weights, as TensorFlow 1's slim draws them: what the released networks begin with."""

from __future__ import annotations

import math

from torch import Tensor, nn


def scale_variance(module: nn.Module) -> None:
    """Initialise as slim's variance_scaling_initializer: truncated normal, variance 2 / fan_in; biases 0.

    1.3 makes up for the variance that cutting the normal off at two standard deviations takes away.
    """
    assert isinstance(module, nn.Conv2d | nn.Linear)
    assert module.bias is not None
    fan_in = module.weight[0].numel()
    truncated_normal(module.weight, math.sqrt(1.3 * 2 / fan_in))
    nn.init.zeros_(module.bias)


def truncated_normal(weight: Tensor, std: float) -> None:
    """Fill a weight from a normal distribution that is cut off at two standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
