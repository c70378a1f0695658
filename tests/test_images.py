"""From image files to what the network takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import disc, turned
from PIL import Image

from drwr_dist.data.index import load_index
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.errors import DataError
from drwr_dist.images import TYPICAL_EXTENT, prepare


def test_a_render_is_taken_pixel_by_pixel(toy_dataset: Path, tmp_path: Path):
    """An image out of a shard gives exactly what training sees."""
    sample = SampleTable.select(load_index(str(toy_dataset)), "test").read(0)
    Image.fromarray(np.dstack([sample.images[0], sample.masks[0]])).save(tmp_path / "a.png")
    expected = composite(sample.images[0], sample.masks[0], 1.0)
    assert np.array_equal(prepare(tmp_path / "a.png", 64, 1.0), expected)


@pytest.mark.filterwarnings("ignore:.*nothing cuts the object out")
@pytest.mark.parametrize("size", [(200, 200), (640, 480), (37, 91), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_any_size_and_mode_becomes_the_network_input(tmp_path: Path, size: tuple[int, int], mode: str):
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2))
    picture.convert(mode).save(tmp_path / "a.png")
    prepared = prepare(tmp_path / "a.png", 64, 1.0)
    assert prepared.shape == (64, 64, 3) and prepared.dtype == np.uint8


@pytest.mark.filterwarnings("ignore:.*nothing cuts the object out")
def test_sixteen_bit_grey_keeps_its_levels(tmp_path: Path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    prepared = prepare(tmp_path / "deep.png", 64, 1.0)
    assert np.abs(prepared[..., 0].astype(int) - ramp // 257).max() <= 1


def test_a_small_object_off_the_centre_is_framed_like_the_training_images(tmp_path: Path):
    Image.fromarray(disc(1000, (150, 800), 60)).save(tmp_path / "a.png")
    prepared = prepare(tmp_path / "a.png", 128, 1.0)
    rows, columns = np.nonzero((prepared < 250).any(-1))
    assert rows.mean() == pytest.approx(63.5, abs=1) and columns.mean() == pytest.approx(63.5, abs=1)
    assert (np.ptp(rows) + 1) / 128 == pytest.approx(TYPICAL_EXTENT, abs=0.03)
    assert tuple(prepared[64, 64]) == (90, 120, 150)
    kept = prepare(tmp_path / "a.png", 128, 1.0, crop="never")
    assert np.ptp(np.nonzero((kept < 250).any(-1))[0]) + 1 < 20


def test_colours_under_transparent_pixels_do_not_bleed(tmp_path: Path):
    picture = disc(300, (150, 150), 100)
    picture[picture[..., 3] == 0, :3] = (255, 0, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    clean = disc(300, (150, 150), 100)
    Image.fromarray(clean).save(tmp_path / "b.png")
    assert np.array_equal(prepare(tmp_path / "a.png", 64, 1.0), prepare(tmp_path / "b.png", 64, 1.0))


def test_an_empty_alpha_is_an_error(tmp_path: Path):
    Image.fromarray(np.full((80, 80, 4), (100, 100, 100, 0), dtype=np.uint8)).save(tmp_path / "plain.png")
    with pytest.raises(DataError, match=r"plain\.png: the mask is"):
        prepare(tmp_path / "plain.png", 64, 1.0)


def test_a_long_narrow_picture_needs_no_square_of_its_length(tmp_path: Path):
    strip = np.full((3, 60_000, 3), 255, dtype=np.uint8)  # its square would take 58 GB
    strip[:, 20_000:40_000] = 0
    Image.fromarray(strip).save(tmp_path / "strip.png")
    middle = prepare(tmp_path / "strip.png", 64, 1.0)[31:33]
    assert middle[:, 30:34].min() < 255 and middle[:, :16].min() == 255


def test_a_mask_for_the_pixels_as_they_lie_is_warned_of(tmp_path: Path):
    """By its size where the picture is not square; where it is, nothing but the missing tag tells."""
    for name, side in (("square", 64), ("long", 48)):
        picture = disc(64, (32, 32), 20)[:side]
        Image.fromarray(picture[..., :3]).save(tmp_path / f"{name}.png", exif=turned())
        Image.fromarray(picture[..., 3]).save(tmp_path / f"{name}.mask.png")
    with pytest.warns(UserWarning, match=r"square\.png: turned as its orientation tag says; .* has no such tag"):
        prepare(tmp_path / "square.png", 64, 1.0, mask=tmp_path / "square.mask.png")
    with pytest.raises(DataError, match=r"long\.png has 48 × 64, turned as its orientation tag says"):
        prepare(tmp_path / "long.png", 64, 1.0, mask=tmp_path / "long.mask.png")


def test_an_inverted_mask_is_warned_of(tmp_path: Path):
    picture = disc(64, (32, 32), 20)
    Image.fromarray(picture[..., :3]).save(tmp_path / "a.png")
    Image.fromarray(255 - picture[..., 3]).save(tmp_path / "mask.png")
    with pytest.warns(UserWarning, match=r"mask\.png: most of the picture's border belongs to the object"):
        prepare(tmp_path / "a.png", 64, 1.0, mask=tmp_path / "mask.png")
    Image.new("L", (64, 64)).save(tmp_path / "empty.png")
    with pytest.raises(DataError, match=r"empty\.png: the mask is empty: no pixel belongs to the object$"):
        prepare(tmp_path / "a.png", 64, 1.0, mask=tmp_path / "empty.png")


def test_an_odd_orientation_tag_is_named(tmp_path: Path):
    Image.fromarray(disc(64, (32, 32), 30)).save(tmp_path / "odd.png", exif=b"II*\0")  # Pillow raises struct.error
    with pytest.raises(DataError, match=r"odd\.png: not an image"):
        prepare(tmp_path / "odd.png", 64, 1.0)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n broken"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "wrong.png").write_bytes(content)
    with pytest.raises(DataError, match=r"wrong\.png: not an image"):
        prepare(tmp_path / "wrong.png", 64, 1.0)


def test_a_truncated_image_is_named(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.png"):
        prepare(tmp_path / "cut.png", 64, 1.0)
