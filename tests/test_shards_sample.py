from __future__ import annotations

import dataclasses
import io
import json
import pickle
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import SIDE, VIEWS, make_sample

from drwr_dist.data.png import png_fault
from drwr_dist.data.sample import composite, decode_sample, encode_sample, split_members
from drwr_dist.errors import DataError


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def decode(members: dict[str, bytes], **options: object):
    return decode_sample(members, key="ball/a", shard="train-000000.tar", **options)


class TestRoundTrip:
    def test_everything_comes_back(self):
        sample = make_sample()
        decoded = decode(encode_sample(sample), with_points=True)
        assert np.array_equal(decoded.images, sample.images)
        assert np.array_equal(decoded.masks, sample.masks)
        assert np.array_equal(decoded.world_to_camera, sample.world_to_camera)
        assert np.array_equal(decoded.focal_length, sample.focal_length)
        assert np.allclose(decoded.points, sample.points, atol=2.0**-11)
        assert decoded.points.dtype == np.float32
        assert decoded.meta == sample.meta

    def test_members_and_their_order(self):
        names = list(encode_sample(make_sample()))
        assert names == sorted(names)
        assert names[:2] == ["00.image.png", "00.mask.png"]
        assert names[-3:] == ["cameras.json", "meta.json", "points.npy"]

    def test_the_same_sample_gives_the_same_bytes(self):
        assert encode_sample(make_sample()) == encode_sample(make_sample())

    def test_views_asked_for_in_their_order(self):
        sample = make_sample()
        decoded = decode(encode_sample(sample), views=[2, 0])
        assert np.array_equal(decoded.images, sample.images[[2, 0]])
        assert np.array_equal(decoded.world_to_camera, sample.world_to_camera[[2, 0]])
        assert decoded.points is None

    def test_other_views_are_not_decoded(self):
        members = encode_sample(make_sample()) | {"01.image.png": b"rot", "points.npy": b"rot"}
        assert len(decode(members, views=[0, 2]).images) == 2

    def test_one_focal_length_for_all_views(self):
        members = encode_sample(make_sample())
        cameras = json.loads(members["cameras.json"]) | {"focal_length": 1.5}
        members["cameras.json"] = json.dumps(cameras).encode()
        assert decode(members).focal_length.tolist() == [1.5] * VIEWS

    def test_background(self):
        sample = make_sample()
        decoded = decode(encode_sample(sample), background=1.0)
        assert (decoded.images[:, 0, 0] == 255).all()
        middle = decoded.images[:, SIDE // 2, SIDE // 2]
        assert np.array_equal(middle, sample.images[:, SIDE // 2, SIDE // 2])


@given(st.integers(0, 255), st.integers(0, 255), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_composite_is_the_formula(value: int, alpha: int, background: float):
    image = np.full((1, 1, 3), value, np.uint8)
    result = composite(image, np.full((1, 1), alpha, np.uint8), background)
    exact = value * alpha / 255 + 255 * background * (1 - alpha / 255)
    assert abs(float(result[0, 0, 0]) - exact) <= 0.5 + 1e-3


def test_composite_on_a_colour():
    image, alpha = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)
    assert composite(image, alpha, (1.0, 0.0, 0.2)).tolist() == [[[255, 0, 51]]]


def _cameras(change: Callable[[dict], None]) -> bytes:
    value = json.loads(encode_sample(make_sample())["cameras.json"])
    change(value)
    return json.dumps(value).encode()


def _spoil(matrix_entry: tuple[int, int, int], number: float) -> bytes:
    def change(value: dict) -> None:
        view, row, column = matrix_entry
        value["world_to_camera"][view][row][column] = number

    return _cameras(change)


def _three_rows(value: dict) -> None:
    value["world_to_camera"] = [matrix[:3] for matrix in value["world_to_camera"]]


def _one_camera_less(value: dict) -> None:
    del value["world_to_camera"][-1], value["focal_length"][-1]


DISC = make_sample().masks[0]
DAMAGES: dict[str, tuple[str, bytes | None, str]] = {
    "view missing": ("01.image.png", None, "missing"),
    "mask missing": ("02.mask.png", None, "missing"),
    "view without camera": ("03.image.png", png(np.zeros((SIDE, SIDE, 3), np.uint8)), "has no camera"),
    "not a PNG": ("00.image.png", b"GIF89a" + bytes(100), "not a PNG"),
    "PNG cut short": ("00.mask.png", png(DISC)[:-20], "PNG"),
    "grey image": ("00.image.png", png(DISC), "not an 8-bit RGB PNG"),
    "16-bit mask": ("00.mask.png", png(DISC.astype(np.uint16)), "not an 8-bit grey PNG"),
    "mask of another size": ("00.mask.png", png(DISC[:16, :16]), "wrong size"),
    "image not square": ("00.image.png", png(np.zeros((8, 16, 3), np.uint8)), "must be square"),
    "mask all black": ("01.mask.png", png(np.zeros_like(DISC)), "the mask is empty"),
    "mask all white": ("01.mask.png", png(np.full_like(DISC, 255)), "the mask is full"),
    "cameras not JSON": ("cameras.json", b"{", "not JSON"),
    "cameras no object": ("cameras.json", b"[]", "not a JSON object"),
    "cameras missing": ("cameras.json", None, "missing"),
    "camera without focal length": ("cameras.json", _cameras(lambda v: v.pop("focal_length")), "must be numbers"),
    "too few focal lengths": ("cameras.json", _cameras(lambda v: v["focal_length"].pop()), "must be a number or"),
    "negative focal length": ("cameras.json", _cameras(lambda v: v.update(focal_length=-1)), "must be positive"),
    "fewer cameras": ("02.image.png", None, "missing; cameras.json describes 3 views"),
    "camera of 3 rows": ("cameras.json", _cameras(_three_rows), "must be [V, 4, 4]"),
    "camera not finite": ("cameras.json", _spoil((1, 0, 3), float("nan")), "not finite"),
    "camera not rigid": ("cameras.json", _spoil((1, 0, 0), 5.0), "not rigid"),
    "camera beyond all numbers": ("cameras.json", _spoil((1, 0, 0), 1e200), "not rigid"),
    "camera last row": ("cameras.json", _spoil((1, 3, 0), 1.0), "last row"),
    "meta missing": ("meta.json", None, "missing"),
    "points not npy": ("points.npy", b"rot", "not a plain .npy"),
    "points of wrong shape": ("points.npy", npy(np.zeros((5, 2), np.float32)), "must be [M, 3]"),
    "points integer": ("points.npy", npy(np.zeros((5, 3), np.int32)), "floating point"),
    "points not finite": ("points.npy", npy(np.full((5, 3), np.inf, np.float16)), "not finite"),
    "points pickled": ("points.npy", npy(np.array([{}], object), allow_pickle=True), "not a plain .npy"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str):
    member, data, reason = DAMAGES[name]
    members = encode_sample(make_sample())
    if data is None:
        del members[member]
    else:
        members[member] = data
    with pytest.raises(DataError) as caught:
        decode(members, with_points=True)
    text = str(caught.value)
    assert text.startswith(f"train-000000.tar: ball/a: {member}: ") and reason in text, text


def test_more_views_than_cameras():
    members = encode_sample(make_sample()) | {"cameras.json": _cameras(_one_camera_less)}
    with pytest.raises(DataError, match=r"02\.image\.png: has no camera: cameras\.json describes 2 views"):
        decode(members)


def test_a_mirrored_camera_is_not_rigid():
    members = encode_sample(make_sample())
    cameras = json.loads(members["cameras.json"])
    cameras["world_to_camera"][0][0] = [-x for x in cameras["world_to_camera"][0][0]]
    members["cameras.json"] = json.dumps(cameras).encode()
    with pytest.raises(DataError, match="not rigid"):
        decode(members)


def test_an_unknown_view_is_refused():
    with pytest.raises(DataError, match=r"view 3 asked for, the sample has views 0 … 2"):
        decode(encode_sample(make_sample()), views=[3])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_flipped_bit_of_a_png_goes_unnoticed(data: st.DataObject):
    whole = encode_sample(make_sample())["00.image.png"]
    place = data.draw(st.integers(0, len(whole) - 1))
    rotten = bytearray(whole)
    rotten[place] ^= 1 << data.draw(st.integers(0, 7))
    assert png_fault(whole, 3) is None
    assert png_fault(bytes(rotten), 3) is not None


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_refused_with_a_data_error(data: bytes):
    for member in ("00.image.png", "cameras.json", "meta.json", "points.npy"):
        with pytest.raises(DataError):
            decode(encode_sample(make_sample()) | {member: data}, with_points=True)


class TestEncodingRefuses:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda s: {"masks": s.masks * 0}, "the mask is empty"),
            (lambda s: {"masks": s.masks[:, :8]}, "masks must be"),
            (lambda s: {"images": s.images.astype(np.float32)}, "must be uint8"),
            (lambda s: {"world_to_camera": s.world_to_camera * 2}, "last row"),
            (lambda s: {"focal_length": s.focal_length[:1]}, "focal_length must be"),
            (lambda s: {"points": s.points * np.nan}, "not finite"),
            (lambda s: {"images": s.images[:0]}, "at least one view"),
        ],
    )
    def test_what_can_not_be_used(self, change: Callable, reason: str):
        sample = make_sample()
        with pytest.raises(DataError, match=r"^ball/a: ") as caught:
            encode_sample(dataclasses.replace(sample, **change(sample)))
        assert reason in str(caught.value)


def test_nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    members = encode_sample(make_sample()) | {"points.npy": npy(np.array([{}], object), allow_pickle=True)}
    with pytest.raises(DataError):
        decode(members, with_points=True)


def test_split_members_refuses_garbage():
    with pytest.raises(DataError, match="damaged"):
        split_members(b"garbage" * 1000, key="ball/a", shard="s.tar")
    with pytest.raises(DataError, match="damaged"):
        split_members(b"", key="ball/a", shard="s.tar")
