"""HRNet: a picture at several resolutions side by side, which exchange what they see (Wang et al., TPAMI 2020).

The trunk of PSCC-Net and CAT-Net. Residual blocks are timm's; where branches meet, timm goes up by nearest neighbour
and by fixed factors, the rivals bilinearly and to the receiving branch's size, so that part is written here. Modules
have HRNet's published names: official state dicts, and timm's ImageNet weights, load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

__all__ = [
    "HighResolutionTrunk",
    "advance",
    "bottlenecks",
    "initialise",
    "residual_blocks",
    "resize",
    "stage",
    "transition",
]


class HighResolutionTrunk(nn.Module):
    """Two stem units, bottlenecks, and three stages of two, three and four branches.

    widths: channels of the four branches. stem_stride: of each of the two stem units. modules: exchanges per stage.
    blocks: basic blocks per branch between two exchanges. align_corners: of every way up.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        stem_stride: int,
        layer1_blocks: int,
        modules: Sequence[int],
        blocks: int,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, stride=stem_stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.layer1 = bottlenecks(64, 64, layer1_blocks)
        self.transition1 = transition([256], widths[:2])
        self.stage2 = stage(widths[:2], modules[0], blocks, align_corners)
        self.transition2 = transition(widths[:2], widths[:3])
        self.stage3 = stage(widths[:3], modules[1], blocks, align_corners)
        self.transition3 = transition(widths[:3], widths[:4])
        self.stage4 = stage(widths[:4], modules[2], blocks, align_corners)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (N, 3, H, W) → four maps, (N, widths[i], H / (s² 2^i), W / (s² 2^i)) rounded up, s = stem_stride."""
        x = F.relu(self.bn1(self.conv1(images)))  # (N, 64, H/s, W/s)
        x = F.relu(self.bn2(self.conv2(x)))  # (N, 64, H/s², W/s²)
        maps = [self.layer1(x)]  # (N, 256, H/s², W/s²)
        maps = self.stage2(advance(self.transition1, maps))  # two maps
        maps = self.stage3(advance(self.transition2, maps))  # three
        result: list[Tensor] = self.stage4(advance(self.transition3, maps))  # four
        return result


class Exchange(nn.Module):
    """Basic blocks on every branch; then every branch becomes ReLU(the sum of all, each brought to its size)."""

    def __init__(self, widths: Sequence[int], blocks: int, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList([residual_blocks(width, width, blocks) for width in widths])
        self.fuse_layers = nn.ModuleList(
            [nn.ModuleList([_bring(widths, j, i) for j in range(len(widths))]) for i in range(len(widths))]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Exchange between maps (N, widths[i], h/2^i, w/2^i); the shapes stay."""
        maps = [branch(m) for branch, m in zip(self.branches, maps, strict=True)]
        fused = []
        for own, row in zip(maps, self.fuse_layers, strict=True):
            assert isinstance(row, nn.ModuleList)
            brought = [layer(m) for layer, m in zip(row, maps, strict=True)]  # channels of `own`, sizes at most its
            sized = [resize(m, own.shape[-2:], self.align_corners) for m in brought]
            fused.append(F.relu(sum(sized[1:], start=sized[0])))
        return fused


def _bring(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Return the layers from one branch to another's channels. Down, they also give its size; up, a resize follows."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]))
    steps = [_unit(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
    last = _unit(widths[source], widths[target], stride=2)[:2]  # the sum comes before the last ReLU
    return nn.Sequential(*steps, last)


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Conv 3×3, BatchNorm, ReLU: (N, inputs, h, w) → (N, outputs, h/stride, w/stride), rounded up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def residual_blocks(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """timm's basic blocks: (N, inputs, h, w) → (N, outputs, h, w)."""
    first = BasicBlock(inputs, outputs, downsample=_skip(inputs, outputs))
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(count - 1)))


def bottlenecks(inputs: int, width: int, count: int, expansion: int = 4) -> nn.Sequential:
    """timm's bottlenecks with a 3×3 convolution of `width` channels: (N, inputs, h, w) → (N, width·expansion, h, w)."""
    outputs = width * expansion
    # timm's expansion is fixed at 4; base_width / 64 is the 3×3 convolution's width against a quarter of `outputs`.
    wide: dict[str, Any] = {"base_width": 64 * 4 // expansion}
    first = Bottleneck(inputs, outputs // 4, downsample=_skip(inputs, outputs), **wide)
    return nn.Sequential(first, *(Bottleneck(outputs, outputs // 4, **wide) for _ in range(count - 1)))


def _skip(inputs: int, outputs: int) -> nn.Sequential | None:
    if inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Branches of `before` channels → branches of `after`: as they are where the width stays, by a unit where it
    changes; one more branch starts from the last, at half its size."""
    layers: list[nn.Module] = []
    for i, width in enumerate(after):
        if i == len(before):
            layers.append(nn.Sequential(_unit(before[-1], width, stride=2)))
        elif before[i] == width:
            layers.append(nn.Identity())
        else:
            layers.append(_unit(before[i], width))
    return nn.ModuleList(layers)


def advance(layers: nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    """Through a transition: maps of its `before` → maps of its `after`."""
    return [layer(maps[min(i, len(maps) - 1)]) for i, layer in enumerate(layers)]


def stage(widths: Sequence[int], modules: int, blocks: int, align_corners: bool) -> nn.Sequential:
    """Exchanges one after another: maps → maps of the same shapes."""
    return nn.Sequential(*(Exchange(widths, blocks, align_corners) for _ in range(modules)))


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """(N, C, h, w) → (N, C, *size), bilinear; untouched where it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=align_corners)


def initialise(net: nn.Module) -> None:
    """Initialise as HRNet does: normal weights by the number of outputs; BatchNorm follows slowly, with momentum 0.01.

    Convolutions with a bias keep torch's own start: few of them have a BatchNorm behind them to tame the sum of their
    inputs, and a head of one or two outputs would begin with logits in the hundreds.
    """
    for module in net.modules():
        match module:
            case nn.Conv2d(bias=None):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            case nn.BatchNorm2d():
                module.momentum = 0.01
