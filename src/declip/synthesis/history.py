"""What a picture has lived through before it was manipulated, and after: cameras, editors, messengers, screens.

`History` holds how often what happens; `draw_before` and `draw_after` choose the steps of one sample, which
`saving.apply` takes pictures through. A fake and its untouched twin go through the same steps.

Before: the camera's size and its JPEG, then a crop at any place. After: always a crop of a few px, which moves the
picture against the 8×8 grid of what it was saved as before, and then one of

    editor       saved once, a tenth of the time twice
    resized      to 0.5-1.5 times its size, then saved
    messenger    saved by the editor, made smaller, JPEG of quality 70-80 with halved chroma
    screenshot   shown at 0.6-1.6 times its size, then PNG or JPEG
    web          WebP
    lossless     PNG: what an editor exports, or a data set holds
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from declip.errors import DatasetError
from declip.synthesis.saving import Cropping, Encoding, Resizing, Step

__all__ = ["History"]

Fate = Literal["editor", "resized", "messenger", "screenshot", "web", "lossless"]

_CAMERA_QUALITY = (80, 98)
_EDITOR_QUALITY = (70, 98)
_MESSENGER_QUALITY = (70, 80)
_WEBP_QUALITY = (60, 95)
_RESIZED = (0.5, 1.5)
_SCREEN = (0.6, 1.6)
_MESSENGER = (0.4, 0.95)  # by how much a messenger makes smaller what exceeds its limit
_LEAST_SIDE = 320  # px
_LARGEST_SCALE = 0.9
_TWICE = 0.1
_GRID = 8  # px


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """How often what happens; shares are in [0, 1].

    camera: of the samples whose photo was saved as a JPEG of quality 80-98 before it was manipulated.
    downscaled: of the samples whose photo was made smaller before that, where it is large enough.
    resized, messenger, screenshot, web, lossless: what happens afterwards; the rest is saved by an editor.
    """

    camera: float = 0.75
    downscaled: float = 0.4
    resized: float = 0.22
    messenger: float = 0.16
    screenshot: float = 0.08
    web: float = 0.08
    lossless: float = 0.08

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) <= 1:
                raise DatasetError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")
        if (total := self.resized + self.messenger + self.screenshot + self.web + self.lossless) > 1:
            raise DatasetError(f"what happens afterwards has shares of {total:.2f} in all; expected at most 1")

    def draw_before(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[Step, ...]:
        """Return what has happened to a photo of `size` (height, width) px before somebody came to manipulate it.

        The crop that follows the camera's JPEG is off its grid, and there half of the time.
        """
        steps: list[Step] = []
        if rng.random() < self.camera:
            steps.append(_jpeg(_CAMERA_QUALITY, rng))
        if rng.random() < 0.5:
            steps.append(draw_crop(size, rng))
        return tuple(steps)

    def draw_scale(self, smallest: float, rng: np.random.Generator) -> float:
        """Return by which factor a photo is made smaller before all else: `smallest` (in (0, 1]) to 1."""
        if smallest > _LARGEST_SCALE or rng.random() >= self.downscaled:
            return 1.0
        return float(rng.uniform(smallest, _LARGEST_SCALE))

    def draw_after(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[str, tuple[Step, ...], Encoding]:
        """Return what happens to a manipulated picture of `size` (height, width) px.

        Returns:
            What it is called (see above), the steps, and the format of the file.
        """
        crop = draw_crop(size, rng)
        fate = self._fate(rng)
        size = crop.size
        steps: list[Step] = [crop]
        last = _jpeg(_EDITOR_QUALITY, rng)
        match fate:
            case "editor":
                if rng.random() < _TWICE:
                    steps += [_jpeg(_EDITOR_QUALITY, rng), draw_crop(size, rng)]
            case "resized":
                steps.append(_resized(size, _RESIZED, rng))
            case "messenger":
                smaller = _resized(size, _MESSENGER, rng)
                steps += [_jpeg((85, 98), rng), smaller]
                last = Encoding(format="jpeg", quality=_between(_MESSENGER_QUALITY, rng), chroma="4:2:0")
            case "screenshot":
                steps.append(Resizing(size=_scaled(size, float(rng.uniform(*_SCREEN))), screen=True))
                last = last if rng.random() < 0.5 else Encoding(format="png")
            case "web":
                last = Encoding(format="webp", quality=_between(_WEBP_QUALITY, rng))
            case "lossless":
                last = Encoding(format="png")
        return fate, tuple(steps), last

    def _fate(self, rng: np.random.Generator) -> Fate:
        chosen = float(rng.random())
        fates: tuple[Fate, ...] = ("resized", "messenger", "screenshot", "web", "lossless")
        for fate in fates:
            chosen -= getattr(self, fate)
            if chosen < 0:
                return fate
        return "editor"


def draw_crop(size: tuple[int, int], rng: np.random.Generator) -> Cropping:
    """Return a crop of 0-15 px from each side of a picture of `size` (height, width), off its 8×8 grid."""
    while True:
        top, left, bottom, right = (int(cut) for cut in rng.integers(0, 2 * _GRID, 4))
        if top % _GRID or left % _GRID:
            return Cropping(corner=(top, left), size=(size[0] - top - bottom, size[1] - left - right))


def _jpeg(quality: tuple[int, int], rng: np.random.Generator) -> Encoding:
    return Encoding(format="jpeg", quality=_between(quality, rng), chroma="4:2:0" if rng.random() < 0.6 else "4:4:4")


def _resized(size: tuple[int, int], factors: tuple[float, float], rng: np.random.Generator) -> Resizing:
    """By a factor that leaves _LEAST_SIDE px at least of the longer side, where there are so many."""
    low, high = factors
    least = min(max(low, _LEAST_SIDE / max(size)), high)
    return Resizing(size=_scaled(size, float(rng.uniform(least, high))), screen=bool(rng.random() < 0.3))


def _between(limits: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
