"""The network from one image to points: the encoder and decoder of the released code.

Modules carry the names of the TensorFlow variables: `tensorflow_name` maps one to the other. The released
decoder has further heads: `fully_connected_1` z and `_2` b, which no loss reads and which are not built, and `_3`,
the scale of the occupancies, which is built where the volumetric loss wants it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad

from drwr_dist.config import ModelConfig, PoseConfig, TrainConfig
from drwr_dist.errors import UsageError
from drwr_dist.initialisers import scale_variance, truncated_normal
from drwr_dist.pose_heads import LEAK, DirectionHead, PoseHeads, pose_head

SCALE_STD = 0.025  # of the weights of the occupancies' scale at the start
HALVINGS = 5  # of the image's side, down to the features that are flattened


def build_network(config: TrainConfig, image_size: int) -> PointNetwork:
    """Build the network of a run: with pose heads, where it is to predict its cameras. As `build_model`."""
    return build_model(config.model, image_size, config.pose)


def build_model(config: ModelConfig, image_size: int, pose: PoseConfig | None = None) -> PointNetwork:
    """Build the network that the configuration asks for, freshly initialised from torch's global seed.

    Args:
        config: architecture and its sizes.
        image_size: pixels, the side of the square images; a multiple of 32.
        pose: heads for cameras, where its mode is predict; None: none.

    Returns:
        A module from images [B, 3, H, W] in [0, 1] to points [B, N, 3].

    Raises:
        UsageError: an unknown architecture, a size below 1, or an image size that is not a multiple of 32.
    """
    if config.architecture != "released":
        raise UsageError(f"model.architecture must be released, got {config.architecture!r}")
    for key in ("points", "channels", "hidden"):
        if getattr(config, key) < 1:
            raise UsageError(f"model.{key} must be at least 1, got {getattr(config, key)}")
    if image_size < 1 or image_size % 2**HALVINGS:
        raise UsageError(f"the image size must be a multiple of {2**HALVINGS}, got {image_size}")
    return PointNetwork(config, image_size, pose)


class Prediction(NamedTuple):
    """What the network makes of images."""

    points: Tensor  # [B, N, 3] in [-0.5, 0.5]³
    scale: Tensor | None = None  # [B] in [0, 1], factor of the occupancies; None without its head
    candidates: Tensor | None = None  # [B, V, K, 4], quaternions of the cameras proposed for V images of each object
    student: Tensor | None = None  # [B, V, 4], the camera that is believed
    beliefs: Tensor | None = None  # [B, V, G], logits of directions, where cameras are searched

    def select(self, rows: slice) -> Prediction:
        """Return the predictions of some images."""
        return Prediction(**{name: part[rows] for name, part in self._asdict().items() if part is not None})

    def to(self, dtype: torch.dtype) -> Prediction:
        """Return everything as numbers of `dtype`."""
        return Prediction(**{name: part.to(dtype) for name, part in self._asdict().items() if part is not None})

    def nothing(self) -> Tensor:
        """Return 0 with a path to every parameter, along which nothing flows."""
        return sum((part.sum() * 0.0 for part in self if part is not None), self.points.new_zeros(()))


class PointNetwork(nn.Module):
    """Encoder and decoder in sequence."""

    def __init__(self, config: ModelConfig, image_size: int, pose: PoseConfig | None = None) -> None:
        super().__init__()
        self.image_size = image_size
        self.encoder = Encoder(config.channels, config.hidden, image_size)
        self.decoder = Decoder(config.hidden, config.points, config.decoder_std, config.scale_head)
        self.pose = pose_head(config.hidden, pose) if pose and pose.mode == "predict" else None

    def forward(self, images: Tensor) -> Tensor:
        """Return points [B, N, 3] in [-0.5, 0.5]³ for images [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: images of another shape.
        """
        return self.predict(images).points

    def predict(self, images: Tensor, view_images: Tensor | None = None) -> Prediction:
        """Return all that the network says of images [B, 3, H, W] in [0, 1]; raises as `forward`.

        Args:
            images: [B, 3, H, W], each becomes points.
            view_images: [B, V, 3, H, W], each becomes cameras; None: no cameras.
        """
        size = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(f"images must be [B, 3, {size}, {size}], got {list(images.shape)}")
        codes = self.encoder(images)
        points, scale = self.decoder(codes), self.decoder.scale(codes)
        if view_images is None:
            return Prediction(points, scale)
        objects, views = view_images.shape[:2]
        found = self._pose_head()(self.encoder.features(view_images.flatten(0, 1)))
        # Every size by name: a rank may have no object, and -1 means nothing then.
        split = {name: part.view(objects, views, *part.shape[1:]) for name, part in found.items()}
        return Prediction(points, scale, **split)

    def cameras(self, images: Tensor) -> Tensor:
        """Return the cameras that the network sees in images [L, 3, H, W]: `world_to_camera` [L, 4, 4].

        Raises:
            ValueError: the network has no pose heads.
        """
        head = self._pose_head()
        return head.cameras(head(self.encoder.features(images)))

    def _pose_head(self) -> PoseHeads | DirectionHead:
        if self.pose is None:
            raise ValueError("this network has no pose heads: it was built for known cameras (pose.mode)")
        return self.pose


class AllHeads(nn.Module):
    """A network whose forward pass returns everything it predicts: what training wraps for DDP."""

    def __init__(self, network: PointNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, view_images: Tensor | None = None) -> Prediction:
        """Return the network's `predict`."""
        return self.network.predict(images, view_images)


class Encoder(nn.Module):
    """Nine convolutions down to 1/32 of the side, then three dense layers: images to codes [B, hidden]."""

    def __init__(self, channels: int, hidden: int, image_size: int) -> None:
        super().__init__()
        layers = [SameConv2d(3, channels, kernel=5, stride=2)]
        for _ in range(HALVINGS - 1):
            layers += [SameConv2d(channels, 2 * channels, 3, 2), SameConv2d(2 * channels, 2 * channels, 3, 1)]
            channels *= 2
        self.convolutions = [_numbered("Conv", i) for i in range(len(layers))]
        for name, layer in zip(self.convolutions, layers, strict=True):
            self.add_module(name, layer)
        width = channels * (image_size // 2**HALVINGS) ** 2
        self.fully_connected_layers = [_numbered("fully_connected", i) for i in range(3)]
        for name in self.fully_connected_layers:
            self.add_module(name, nn.Linear(width, hidden))
            width = hidden
        for module in self.children():
            scale_variance(module)

    def forward(self, images: Tensor) -> Tensor:
        """Return codes [B, hidden] for images [B, 3, H, W] in [0, 1]."""
        return leaky_relu(self.get_submodule(self.fully_connected_layers[-1])(self.features(images)), LEAK)

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer reads [B, hidden]: poses branch off here."""
        x = 2 * images - 1
        for name in self.convolutions:
            x = leaky_relu(self.get_submodule(name)(x), LEAK)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (H, W, C) order, so that TensorFlow weights fit as they are
        for name in self.fully_connected_layers[:-1]:
            x = leaky_relu(self.get_submodule(name)(x), LEAK)
        return x


class Decoder(nn.Module):
    """One fully connected layer and tanh / 2: codes [B, hidden] to points [B, N, 3]; perhaps one more for the scale."""

    def __init__(self, hidden: int, points: int, std: float, scale_head: bool = False) -> None:
        super().__init__()
        self.fully_connected = nn.Linear(hidden, 3 * points)
        truncated_normal(self.fully_connected.weight, std)
        nn.init.zeros_(self.fully_connected.bias)
        self.fully_connected_3 = nn.Linear(hidden, 1) if scale_head else None
        if self.fully_connected_3:
            truncated_normal(self.fully_connected_3.weight, SCALE_STD)
            nn.init.zeros_(self.fully_connected_3.bias)

    def scale(self, codes: Tensor) -> Tensor | None:
        """Return the factor of the occupancies [B] in [0, 1], or None without its head."""
        return torch.sigmoid(self.fully_connected_3(codes))[:, 0] if self.fully_connected_3 else None

    def forward(self, codes: Tensor) -> Tensor:
        """Return points [B, N, 3] in [-0.5, 0.5]³."""
        points: Tensor = torch.tanh(self.fully_connected(codes)) / 2
        return torch.unflatten(points, 1, (self.fully_connected.out_features // 3, 3))


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: ⌈size / stride⌉ outputs, the odd pixel at the end.

    For an even side and stride 2 the padding is (1, 2) for 5 × 5 and (0, 1) for 3 × 3. torch's symmetric
    `padding` would shift the image by half a pixel at each of the five halvings.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel, stride)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        top, bottom = self._padding(input.shape[-2])
        left, right = self._padding(input.shape[-1])
        return super().forward(pad(input, (left, right, top, bottom)))

    def _padding(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def tensorflow_name(parameter: str) -> str:
    """Return the released checkpoint's name of a parameter: encoder.Conv_1.weight is encoder/Conv_1/weights.

    Convolution weights are [h, w, in, out] there and [out, in, h, w] here, dense ones [in, out] and [out,
    in].
    """
    *scope, kind = parameter.split(".")
    return "/".join((*scope, {"weight": "weights", "bias": "biases"}[kind]))


def _numbered(name: str, index: int) -> str:
    """Return TensorFlow's name of the layer: the first has no number."""
    return f"{name}_{index}" if index else name
