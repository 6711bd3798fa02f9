"""Arrays, tensors and open files as pictures."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip.errors import ImageError
from declip.images import arrays
from declip.images.read import read_photo
from tests.images.pictures import encode, refused, scene

RGBA = np.dstack([scene(20, 30), np.full((20, 30), 255, np.uint8)])
# Name → the same picture in another shape or type.
SAME: dict[str, Callable[[], np.ndarray]] = {
    "channels first": lambda: scene(20, 30).transpose(2, 0, 1),
    "rgba": lambda: RGBA,
    "rgba, channels first": lambda: RGBA.transpose(2, 0, 1),
    "float32": lambda: scene(20, 30).astype(np.float32) / 255,
    "float64, channels first": lambda: scene(20, 30).transpose(2, 0, 1) / 255,
    "float16": lambda: (scene(20, 30) / 255).astype(np.float16),
    "a little above 1": lambda: scene(20, 30) / 255 * (1 + 1e-7),
    "uint16": lambda: scene(20, 30).astype(np.uint16) * 257,
    "uint16, big endian": lambda: (scene(20, 30).astype(np.uint16) * 257).astype(">u2"),
    "not contiguous": lambda: np.repeat(scene(20, 30), 2, axis=0)[::2],
}


@pytest.mark.parametrize("name", SAME)
def test_arrays_of_other_shapes_and_types_are_the_same_picture(name: str) -> None:
    given = SAME[name]()
    before = given.copy()
    photo = read_photo(given)
    assert np.array_equal(photo.pixels, scene(20, 30)) and photo.notes == () and photo.data == b""
    assert photo.pixels.flags.c_contiguous and photo.pixels.flags.writeable
    photo.pixels[:] = 7
    assert np.array_equal(given, before)


def test_grey_arrays() -> None:
    grey = scene(20, 30)[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    for given in (grey, grey[:, :, None], grey[None], grey / 255, grey.astype(np.uint16) * 257):
        assert np.array_equal(read_photo(given).pixels, expected)
    assert read_photo(np.full((1, 9, 3), 5, np.uint8)).size == (1, 9)
    assert read_photo(np.full((3, 9), 5, np.uint8)).size == (3, 9)


def test_alpha_of_arrays_is_composited_on_white() -> None:
    rgba = RGBA.copy()
    rgba[:10, :, 3] = 0
    for given in (rgba, rgba / 255, rgba.astype(np.uint16) * 257):
        pixels = read_photo(given).pixels
        assert (pixels[:10] == 255).all() and np.array_equal(pixels[10:], scene(20, 30)[10:])
    assert np.array_equal(read_photo(rgba).pixels, read_photo(encode(rgba, "PNG")).pixels)


def test_values_that_are_no_picture_are_refused_with_words() -> None:
    cases: Any = (
        (np.linspace(0, 255, 48).reshape(4, 4, 3), r"floats from 0 to 255; expected floats in \[0, 1\]"),
        (np.linspace(-2.1, 2.6, 48).reshape(4, 4, 3), r"floats from -2.1 to 2.6; .*undo a network's normalisation"),
        (np.full((4, 4, 3), np.inf), r"floats from inf to inf; expected"),
        (np.zeros((4, 4), bool), "this is a mask, not a picture; expected"),
        (np.zeros((3, 9, 3), np.uint8), "of 3 rows or one of 3 channels"),
        (np.zeros((1, 3, 9, 9), np.uint8), "a batch, or a video; give one picture at a time"),
        (np.full((4, 4, 3), np.nan), "expected"),
        (np.zeros((4, 4, 3), np.int64), "expected"),
        *((np.zeros(shape, np.uint8), "expected") for shape in ((5, 4, 2), (3, 4, 4), (0, 4, 3), (2, 8, 9), (9,))),
        *((Image.new("RGB", size), "expected") for size in ((0, 5), (5, 0))),
        *((given, "expected a path, the bytes of a picture file") for given in (None, 3.5, [1, 2])),
    )
    for given, words in cases:
        with refused("input", words):
            read_photo(given)
    with refused("too-large", "at most 99 pixels"):
        read_photo(np.zeros((3, 10, 11), np.uint8), max_pixels=99)


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    pixels = torch.from_numpy(scene(20, 30))
    planes = pixels.permute(2, 0, 1)
    floats = planes.float() / 255
    for given in (pixels, planes, floats, floats.double().requires_grad_(), torch.nn.Parameter(floats)):
        photo = read_photo(given)
        assert np.array_equal(photo.pixels, scene(20, 30)) and photo.name.startswith("<tensor, torch.")
    assert np.abs(read_photo(floats.bfloat16()).pixels.astype(int) - scene(20, 30)).max() <= 1
    with pytest.raises(ImageError, match=r"<tensor, torch.float32 \(3, 20, 30\)>: floats from 0 to 255"):
        read_photo(planes.float())
    with pytest.raises(ImageError, match="a batch"):
        read_photo(planes[None])


def test_a_tensor_is_known_without_torch() -> None:
    tensor = type("Tensor", (), {"__module__": "torch"})
    assert arrays.is_tensor(type("Image", (tensor,), {"__module__": "torchvision.tv_tensors"})())
    assert not arrays.is_tensor(type("Tensor", (), {"__module__": "torchlight"})()) and not arrays.is_tensor(None)


def test_open_files(tmp_path: Path) -> None:
    data = encode(scene(20, 30), "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    photo = read_photo(io.BytesIO(data))
    assert np.array_equal(photo.pixels, scene(20, 30)) and photo.data == data
    with path.open("rb") as file:
        photo = read_photo(file)
        assert photo.name == str(path) and photo.data == data and not file.closed
        with refused("corrupt", r"nothing left to read .* seek\(0\)"):
            read_photo(file)
    cases: list[tuple[Any, str, str]] = [
        (file, "missing", "cannot be read: .*closed"),
        (io.StringIO("text"), "input", 'gave str; expected bytes: open it as a binary file, with "rb"'),
        (io.BytesIO(b"text"), "format", "not a picture declip reads"),
        (io.BytesIO(data[:100]), "corrupt", "truncated or damaged"),
    ]
    for source, kind, words in cases:
        with refused(kind, words):
            read_photo(source)
    with refused("too-large", "at most 10 bytes are read"):
        read_photo(io.BytesIO(data), max_bytes=10)
    if sys.platform != "win32":
        with (tmp_path / "photo.png").open("rb", buffering=0) as raw:
            assert read_photo(raw).size == (20, 30)


def test_a_pil_image_of_sixteen_bits_that_stay_low_is_told() -> None:
    low = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))
    assert "above 599 of 65535" in read_photo(low).notes[0] and "10 bits" in read_photo(low).notes[0]
