"""The network: the released architecture, TensorFlow's padding and names, its initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv2d

from drwr_dist.config import ModelConfig
from drwr_dist.errors import UsageError
from drwr_dist.model import SameConv2d, build_model, tensorflow_name

SMALL = ModelConfig(points=50, channels=4, hidden=32)


def test_the_released_shapes() -> None:
    network = build_model(ModelConfig(), 128)
    shapes = {tensorflow_name(name): tuple(p.shape) for name, p in network.named_parameters()}
    channels = [(16, 3, 5), (32, 16, 3), (32, 32, 3), (64, 32, 3), (64, 64, 3)]
    channels += [(128, 64, 3), (128, 128, 3), (256, 128, 3), (256, 256, 3)]
    expected = {}
    for i, (out, into, kernel) in enumerate(channels):
        name = f"encoder/Conv_{i}" if i else "encoder/Conv"
        expected |= {f"{name}/weights": (out, into, kernel, kernel), f"{name}/biases": (out,)}
    dense = {"encoder/fully_connected": (1024, 4096), "decoder/fully_connected": (6000, 1024)}
    dense |= {f"encoder/fully_connected_{i}": (1024, 1024) for i in (1, 2)}
    for name, shape in dense.items():
        expected |= {f"{name}/weights": shape, f"{name}/biases": shape[:1]}
    assert shapes == expected


@pytest.mark.parametrize("size", [32, 64, 96])
def test_points_lie_in_the_cube(size: int) -> None:
    network = build_model(SMALL, size)
    points = network(torch.rand(3, 3, size, size))
    assert points.shape == (3, 50, 3)
    assert (points.abs() <= 0.5).all()
    points.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_each_image_by_itself() -> None:
    network, images = build_model(SMALL, 32).double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(images)[1:], network(images[1:]))


def test_a_seed_gives_one_network() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build_model(SMALL, 32).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_flattening_in_the_order_of_tensorflow() -> None:
    """The first dense layer reads (row, column, channel), channel fastest."""
    network = build_model(ModelConfig(points=1, channels=1, hidden=4), 64)
    seen = []
    network.encoder.fully_connected.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    last = []
    network.encoder.Conv_8.register_forward_hook(lambda _, __, output: last.append(output))
    network(torch.rand(1, 3, 64, 64))
    features = torch.nn.functional.leaky_relu(last[0], 0.2)
    row, column, channel = 1, 0, 5
    assert seen[0][0, (row * 2 + column) * 16 + channel] == features[0, channel, row, column]


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "before", "after"),
    [(5, 2, 128, 1, 2), (3, 2, 64, 0, 1), (3, 1, 64, 1, 1), (3, 2, 7, 1, 1), (5, 2, 9, 2, 2)],
)
def test_same_padding(kernel: int, stride: int, size: int, before: int, after: int) -> None:
    layer, images = SameConv2d(2, 3, kernel, stride), torch.rand(1, 2, size, size)
    padded = torch.zeros(1, 2, size + before + after, size + before + after)
    padded[..., before : before + size, before : before + size] = images
    expected = conv2d(padded, layer.weight, layer.bias, stride)
    assert layer(images).shape[-1] == math.ceil(size / stride)
    torch.testing.assert_close(layer(images), expected)


def test_initialisation() -> None:
    network = build_model(ModelConfig(decoder_std=0.025), 64)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
            continue
        fan_in = parameter[0].numel()
        std = 0.025 if name.startswith("decoder") else math.sqrt(1.3 * 2 / fan_in)
        assert parameter.abs().max() <= 2 * std
        cut_off = 0.8796  # the deviation that a normal cut off at two standard deviations keeps
        assert parameter.std().item() == pytest.approx(cut_off * std, rel=0.1)


def test_an_untrained_network_gives_a_small_ball() -> None:
    points = build_model(ModelConfig(points=300), 64)(torch.rand(2, 3, 64, 64))
    assert 0.001 < points.std() < 0.06
    assert points.mean().abs() < 0.01


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(UsageError, match="multiple of 32, got 100"):
        build_model(SMALL, 100)
    with pytest.raises(UsageError, match=r"model.architecture .*'other'"):
        build_model(ModelConfig(architecture="other"), 64)
    with pytest.raises(UsageError, match=r"model.points .*0"):
        build_model(ModelConfig(points=0), 64)
    with pytest.raises(ValueError, match=r"got \[1, 3, 64, 64\]"):
        build_model(SMALL, 32)(torch.rand(1, 3, 64, 64))


def test_a_rank_without_a_sample_takes_part_with_a_zero_gradient() -> None:
    """The last step of an epoch may leave a rank none; it still has to take part in the all-reduce."""
    network = build_model(SMALL, 32)
    prediction = network.predict(torch.zeros(0, 3, 32, 32))
    assert prediction.points.shape == (0, 50, 3)
    prediction.nothing().backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())
