"""What pictures go through before and after they are manipulated: cameras, editors, messengers, screens.

With `Saving` each step happens or not, independently of the others; by default a picture is only saved. With `History`
every picture has a past and ends in one of several ways:

    editor       saved once, a tenth of the time twice
    resized      to 0.5-1.5 times its size, then saved
    messenger    saved by the editor, made smaller, JPEG of quality 70-80 with halved chroma
    screenshot   shown at 0.6-1.6 times its size, then PNG or JPEG
    web          WebP
    lossless     PNG: what an editor exports, or a data set holds

In a history a crop of a few px comes first after the manipulation. It moves the picture against the 8×8 grid of what it
was saved as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from declip.errors import DatasetError
from declip.synthesis.steps import PNG, Cropping, Encoding, Noise, Resizing, Step, jpeg

__all__ = ["After", "History", "Saving"]

_WEBP_QUALITY = (60, 95)
_SCREEN = (0.6, 1.6)  # factors of the sides, of what is shown on a screen
_NOISE = (0.5, 3.0)  # levels of 255
_BEFORE_QUALITY = (70, 98)
_SOCIAL_QUALITY = (70, 85)  # of the network's own JPEG, after that of the camera or editor
_CAMERA_QUALITY = (80, 98)
_EDITOR_QUALITY = (70, 98)
_MESSENGER_QUALITY = (70, 80)
_RESIZED = (0.5, 1.5)
_MESSENGER = (0.4, 0.95)  # by how much a messenger makes smaller what exceeds its limit
_LEAST_SIDE = 320  # px
_HALVED = 0.6  # share of JPEG files with halved chroma
_TWICE = 0.1
_GRID = 8  # px


class After(NamedTuple):
    """The steps after a manipulation, the format of the file, and how the picture ended, "" with `Saving`."""

    steps: tuple[Step, ...]
    last: Encoding
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """How often which step happens; shares of the pairs are in [0, 1].

    jpeg, webp: saved so; the others are PNG.
    jpeg_quality: lowest and highest, 1-100.
    resize: brought to another size before they are saved, by a factor in resize_range.
    noise: with Gaussian noise of 0.5-3 levels on top.
    screenshot: shown on a screen at 0.6 to 1.6 times their size and captured as PNG; nothing else of this list happens
        to those.
    social: sent through a social network: a JPEG of jpeg_quality, then at most social_side px a side, then a JPEG of
        quality 70-85 and halved chroma, whatever else was drawn as the format.
    before: share of photos saved as JPEG of quality 70-98 before they are manipulated, as most photos were.
    donor: share of the donors of splices saved so before a part of them is taken.
    """

    jpeg: float = 0.5
    jpeg_quality: tuple[int, int] = (60, 95)
    webp: float = 0.0
    resize: float = 0.0
    resize_range: tuple[float, float] = (0.5, 0.95)
    noise: float = 0.0
    screenshot: float = 0.0
    social: float = 0.0
    social_side: int = 384
    before: float = 0.25
    donor: float = 0.0

    def __post_init__(self) -> None:
        _check_shares(self, ("jpeg", "webp", "resize", "noise", "screenshot", "social", "before", "donor"))
        if self.jpeg + self.webp > 1:
            raise DatasetError(f"jpeg is {self.jpeg} and webp {self.webp}; expected at most 1 together")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise DatasetError(f"jpeg_quality is {self.jpeg_quality}; expected 1 <= lowest <= highest <= 100")
        if not 0 < self.resize_range[0] <= self.resize_range[1] <= 4:
            raise DatasetError(f"resize_range is {self.resize_range}; expected 0 < lowest <= highest <= 4")
        if self.social_side < 32:
            raise DatasetError(f"social_side is {self.social_side}; expected at least 32 px")

    def draw_before(self, size: tuple[int, int], rng: np.random.Generator, *, donor: bool = False) -> tuple[Step, ...]:
        """Draw what happens to a photo, or to a donor, before the manipulation."""
        return (jpeg(_BEFORE_QUALITY, rng),) if _drawn(self.donor if donor else self.before, rng) else ()

    def draw_after(self, size: tuple[int, int], rng: np.random.Generator) -> After:
        """Draw what happens to a manipulated picture of `size` (height, width) px."""
        steps: list[Step] = []
        chosen = float(rng.random())
        if chosen < self.jpeg:
            last = jpeg(self.jpeg_quality, rng)
        else:
            last = _webp(rng) if chosen < self.jpeg + self.webp else PNG
        if _drawn(self.screenshot, rng):
            return After((_screen(size, rng),), PNG)
        if _drawn(self.resize, rng):
            size = _scaled(size, float(rng.uniform(*self.resize_range)))
            steps.append(Resizing(size=size))
        if _drawn(self.noise, rng):
            steps.append(Noise(sigma=round(float(rng.uniform(*_NOISE)), 2), seed=int(rng.integers(2**31))))
        if _drawn(self.social, rng):
            steps.append(last if last.format == "jpeg" else jpeg(self.jpeg_quality, rng))
            if max(size) > self.social_side:
                steps.append(Resizing(size=_scaled(size, self.social_side / max(size))))
            last = jpeg(_SOCIAL_QUALITY, rng, halved=1)
        return After(tuple(steps), last)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """How often what happens; shares are in [0, 1].

    camera: of the photos saved as a JPEG of quality 80-98 before they are manipulated.
    resized, messenger, screenshot, web, lossless: what happens afterwards; the rest is saved by an editor.
    """

    camera: float = 0.75
    resized: float = 0.22
    messenger: float = 0.16
    screenshot: float = 0.08
    web: float = 0.08
    lossless: float = 0.08

    def __post_init__(self) -> None:
        _check_shares(self, self.__slots__)
        if (total := self.resized + self.messenger + self.screenshot + self.web + self.lossless) > 1:
            raise DatasetError(f"what happens afterwards has shares of {total:.2f} in all; expected at most 1")

    def draw_before(self, size: tuple[int, int], rng: np.random.Generator, *, donor: bool = False) -> tuple[Step, ...]:
        """Draw what has happened to a photo or donor of `size` (height, width) px before the manipulation.

        Half of the time a crop follows the camera's JPEG, off its grid.
        """
        camera = (jpeg(_CAMERA_QUALITY, rng, _HALVED),) if rng.random() < self.camera else ()
        return (*camera, _crop(size, rng)) if rng.random() < 0.5 else camera

    def draw_after(self, size: tuple[int, int], rng: np.random.Generator) -> After:
        """Draw how a manipulated picture of `size` (height, width) px ends."""
        crop = _crop(size, rng)
        name, size = self._draw_name(rng), crop.size
        last = jpeg(_EDITOR_QUALITY, rng, _HALVED)
        steps: tuple[Step, ...] = ()
        match name:
            case "editor" if rng.random() < _TWICE:
                steps = (jpeg(_EDITOR_QUALITY, rng, _HALVED), _crop(size, rng))
            case "resized":
                steps = (_resized(size, _RESIZED, rng),)
            case "messenger":
                steps = (jpeg((85, 98), rng, _HALVED), _resized(size, _MESSENGER, rng))
                last = jpeg(_MESSENGER_QUALITY, rng, halved=1)
            case "screenshot":
                steps = (_screen(size, rng),)
                last = last if rng.random() < 0.5 else PNG
            case "web":
                last = _webp(rng)
            case "lossless":
                last = PNG
        return After((crop, *steps), last, name)

    def _draw_name(self, rng: np.random.Generator) -> str:
        chosen = float(rng.random())
        for name in ("resized", "messenger", "screenshot", "web", "lossless"):
            chosen -= getattr(self, name)
            if chosen < 0:
                return name
        return "editor"


def _drawn(share: float, rng: np.random.Generator) -> bool:
    """Draw whether a step happens; one with a share of 0 draws no random number."""
    return share > 0 and rng.random() < share


def _check_shares(settings: Saving | History, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise DatasetError(f"{name} is {getattr(settings, name)}; expected a share in [0, 1]")


def _crop(size: tuple[int, int], rng: np.random.Generator) -> Cropping:
    """Draw a crop of 0-15 px from each side of a picture of `size` (height, width), off its 8×8 grid."""
    while True:
        top, left, bottom, right = (int(cut) for cut in rng.integers(0, 2 * _GRID, 4))
        if top % _GRID or left % _GRID:
            return Cropping(corner=(top, left), size=(size[0] - top - bottom, size[1] - left - right))


def _resized(size: tuple[int, int], factors: tuple[float, float], rng: np.random.Generator) -> Resizing:
    """Draw another size that leaves the longer side at least _LEAST_SIDE px, where it has so many."""
    least = min(max(factors[0], _LEAST_SIDE / max(size)), factors[1])
    return Resizing(size=_scaled(size, float(rng.uniform(least, factors[1]))), screen=bool(rng.random() < 0.3))


def _screen(size: tuple[int, int], rng: np.random.Generator) -> Resizing:
    return Resizing(size=_scaled(size, float(rng.uniform(*_SCREEN))), screen=True)


def _webp(rng: np.random.Generator) -> Encoding:
    return Encoding(format="webp", quality=int(rng.integers(_WEBP_QUALITY[0], _WEBP_QUALITY[1] + 1)))


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
