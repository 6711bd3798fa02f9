"""Change a trained network so that it computes the same with less work.

`speed_up` folds normalisation into convolutions and, on a CPU, computes 5×5 convolutions by Winograd's algorithm: the
same function but for rounding. `use_bf16` prepares a network for bfloat16, which is less exact.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.mlp import Mlp
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.fusion import fuse_conv_bn_weights

from declip.nn.dilated import Stem
from declip.nn.model import Network

__all__ = ["Call", "WinogradConv", "fold", "narrow", "replace_convs", "speed_up", "use_bf16", "watch"]

# CLIP's QuickGELU is x · sigmoid(1.702 x).
QUICK = 1.702
# Winograd: taps of the kernel; and by the outputs of a tile along an axis, the points with the smallest error.
TAPS = 5
POINTS = {2: (0.0, 0.75, -0.75, 1.5, -1.5), 4: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)}
# Channels, in and out, from which it is faster, and from which the more exact of the two tiles is fast enough.
FEWEST, MANY = 64, 512
# Classes whose computation is known, and that may be changed. What is derived from them may compute something else:
# StdConv2d, ScaledStdConv2d and torch's parametrizations make the weight anew in each call.
KNOWN = (nn.Conv2d, Conv2dSame, nn.BatchNorm2d, BatchNormAct2d, nn.Linear, Mlp)
# Channels whose kernels are made at once: all of them in double precision would fill hundreds of megabytes.
AT_ONCE = 32
# Least bytes between two steps of a piece. With more, what lies between would leave the processor's cache.
PIECE = 2 << 20


def speed_up(net: Network, image: Tensor) -> None:
    """Change a network in eval mode in place; its logits stay the same but for rounding, and it cannot be trained.

    image: (1, 3, S, S), as the network takes it, on its device.
    """
    calls = watch(net, image)
    fold(net, calls)
    if image.device.type == "cpu":
        narrow(net)
        replace_convs(net, calls)


def use_bf16(net: Network, *, compiled: bool = False) -> Callable[..., Tensor]:
    """Change a network for bfloat16 in place and return it, to be called under autocast.

    The first filters of a stem stay in fp32, since residuals are finer than bf16. compiled: by torch.compile, which
    takes its time with the first batch of each size.
    """
    kept = {module.residuals for module in net.modules() if isinstance(module, Stem)}
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and _is_known(module) and module not in kept:
            module.to(torch.bfloat16)  # once, where autocast would do it in every call
    net.to(memory_format=torch.channels_last)
    return torch.compile(net) if compiled else net


# --- what the network does --------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """One call of a convolution or BatchNorm.

    source: the convolution whose output it takes, if nothing else takes that output. shape: of its own output.
    """

    module: nn.Module
    source: nn.Conv2d | None
    shape: torch.Size


def watch(net: nn.Module, image: Tensor) -> list[Call]:
    """Run a network on an image (1, 3, S, S) without computing (fake tensors); return its convolutions and norms."""
    ran: list[tuple[nn.Module, Any, Any, torch.Size]] = []  # with the nodes of autograd that gave input and output
    convs: dict[Any, nn.Conv2d] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ran.append((module, inputs[0].grad_fn, output.grad_fn, output.shape))
        if isinstance(module, nn.Conv2d):
            convs[output.grad_fn] = module

    watched = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d) and _is_known(m)]
    hooks = [m.register_forward_hook(note) for m in watched]
    try:
        with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            # Made here, since the image may come from inference mode, whose tensors have no gradients.
            last = net(torch.empty(image.shape, dtype=image.dtype, device=image.device, requires_grad=True)).grad_fn
    finally:
        for hook in hooks:
            hook.remove()
    uses = _count_uses(last)
    times = Counter(module for module, *_ in ran)
    calls = []
    for module, before, after, shape in ran:
        source = convs.get(before)
        # What comes to nothing is not counted, so that this call itself has to come to something.
        alone = source is not None and times[module] == times[source] == uses[before] == 1 and after in uses
        calls.append(Call(module, source if alone else None, shape))
    return calls


def _is_known(module: nn.Module) -> bool:
    """Return whether a module computes what its class does: none derived from it, and no hooks or functions of its own.

    weight_norm and spectral_norm, for instance, are hooks that make the weight.
    """
    hooks = module._forward_pre_hooks or module._forward_hooks
    return type(module) in KNOWN and not hooks and not {"forward", "_conv_forward"} & vars(module).keys()


def _count_uses(last: Any) -> Counter[Any]:
    """Return how often the result of each node of autograd's graph is used for the last one, which is the output."""
    uses = Counter([last])
    new = [last]
    while new:
        given = [node for node, _ in new.pop().next_functions if node is not None]
        new += set(given) - uses.keys()
        uses.update(given)
    return uses


# --- folding ----------------------------------------------------------------------------------------------------------


def fold(net: nn.Module, calls: Sequence[Call]) -> int:
    """Fold each BatchNorm into the convolution before it, and QuickGELU's factor into the layers around it, in place.

    A pair is folded where both are children of the same module. calls: of `watch`. Return the number of layers folded.
    """
    homes = {child: (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    folded = 0
    for call in calls:
        conv, norm = call.source, call.module
        if conv is None or not isinstance(norm, nn.BatchNorm2d) or homes[conv][0] is not homes[norm][0]:
            continue
        if norm.running_mean is None or norm.running_var is None:  # it takes the statistics of each picture
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, name = homes[norm]
        setattr(parent, name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
        folded += 1
    with torch.no_grad():
        for mlp in list(net.modules()):
            if not (isinstance(mlp, Mlp) and type(mlp.act) is QuickGELU and type(mlp.norm) is nn.Identity):
                continue
            linear = isinstance(mlp.fc1, nn.Linear) and isinstance(mlp.fc2, nn.Linear)
            if linear and mlp.fc1.bias is not None and all(map(_is_known, (mlp, mlp.fc1, mlp.fc2))):
                mlp.fc1.weight.mul_(QUICK)
                mlp.fc1.bias.mul_(QUICK)
                mlp.fc2.weight.div_(QUICK)
                mlp.act = nn.SiLU(inplace=True)
                folded += 1
    return folded


# --- a convolution to one map before an enlargement -------------------------------------------------------------------


class NarrowConv(nn.Module):
    """An enlargement and a k × k convolution to one map, in the other order: (N, C, h, w) → (N, 1, H, W).

    A convolution with one kernel is slow on CPUs. As a matrix it gives k² maps, one for each tap, fewer than the
    channels it reads; only they are enlarged, and then summed where they belong. It is the same function: both steps
    are linear, and each channel is enlarged by itself.
    """

    weight: Tensor

    def __init__(self, enlarge: nn.Upsample, conv: nn.Conv2d) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.side = conv.kernel_size[0]
        self.bias = conv.bias
        # The value at a place goes to where the tap finds it: from the other side.
        flipped = conv.weight.detach()[0].flip(1, 2)  # (C, k, k)
        self.register_buffer("weight", flipped.flatten(1).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, 1, H, W)."""
        taps = self.weight @ x.flatten(2)  # (N, k², h·w)
        maps = self.enlarge(taps.view(*taps.shape[:2], *x.shape[2:]))  # (N, k², H, W)
        y = F.fold(maps.flatten(2), (maps.shape[2], maps.shape[3]), self.side, padding=self.side // 2)
        return y if self.bias is None else y + self.bias


def narrow(net: nn.Module) -> int:
    """Move each convolution to one map before the enlargement that it follows, in place. Return how many were moved."""
    found = 0
    for parent in list(net.modules()):
        children = list(parent.named_children()) if type(parent) is nn.Sequential else []
        for (before, enlarge), (after, conv) in itertools.pairwise(children):
            if type(enlarge) is nn.Upsample and type(conv) is nn.Conv2d and _is_known(conv) and _is_narrow(conv):
                setattr(parent, before, NarrowConv(enlarge, conv))
                setattr(parent, after, nn.Identity())
                found += 1
    return found


def _is_narrow(conv: nn.Conv2d) -> bool:
    """Return whether a convolution gives one map, of the size of its input, from more channels than it has taps."""
    k = conv.kernel_size[0]
    return conv.out_channels == 1 and k % 2 == 1 and k * k < conv.in_channels and _is_plain(conv, k)


def _is_plain(conv: nn.Conv2d, k: int) -> bool:
    """Return whether a convolution has k × k taps, keeps the size, and has no stride, dilation or groups."""
    shape = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups, conv.padding_mode)
    return shape == ((k, k), (k // 2, k // 2), (1, 1), (1, 1), 1, "zeros")


# --- Winograd's algorithm ---------------------------------------------------------------------------------------------


class WinogradConv(nn.Module):
    """What a Conv2d(C, K, 5, padding=2) computes, in a third to a sixth of the multiplications. It cannot be trained.

    Sides of the grid are multiples of `tile`. Tiles of m × m outputs are polynomials; multiplied at m + 4 points along
    each axis they need (m + 4)² products where a plain convolution needs 25 m² (Lavin & Gray, CVPR 2016): 36 against
    100, or 64 against 400. The weights take (m + 4)² / 25 as much memory. The errors of a layer are 1.4e-6 of what it
    gives for m = 2, 5e-6 for m = 4 (root mean square), against 5e-7 of a plain convolution.
    """

    before: Tensor
    kernels: Tensor
    after: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, tile: int) -> None:
        super().__init__()
        self.tile = tile
        after, kernel, before = _transforms(tile)
        taps = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)  # (25, C, K)
        points = torch.kron(kernel, kernel)
        kernels = torch.empty(len(points), *taps.shape[1:])
        for start in range(0, taps.shape[1], AT_ONCE):
            some = taps[:, start : start + AT_ONCE].double()
            kernels[:, start : start + AT_ONCE] = torch.einsum("pt,tck->pck", points, some)
        self.register_buffer("before", torch.kron(before, before).float())
        self.register_buffer("kernels", kernels)
        self.register_buffer("after", torch.kron(after, after).float())
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K, H, W), channels-last. Large grids are computed piece by piece."""
        n, channels, height, width = x.shape
        count, tile, side = self.kernels.shape[2], self.tile, self.tile + TAPS - 1
        rows, columns = height // tile, width // tile
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 2, 2, 2, 2))  # (N, H + 4, W + 4, C)
        tiles = padded.unfold(1, side, tile).unfold(2, side, tile)  # (N, rows, columns, C, m + 4, m + 4)
        tiles = tiles.permute(4, 5, 0, 1, 2, 3)
        y = x.new_empty(n, rows, tile, columns, tile, count)
        # At least as many bytes as the kernels, which each piece reads anew.
        piece = max(PIECE, self.kernels.nbytes) // (side * side * columns * max(channels, count) * x.itemsize)
        images, piece = max(1, piece // rows), min(max(1, piece), rows)
        for i in range(0, n, images):
            for row in range(0, rows, piece):
                some = tiles[:, :, i : i + images, row : row + piece]
                spectra = (self.before @ some.reshape(side * side, -1)).view(side * side, -1, channels)
                products = torch.bmm(spectra, self.kernels)  # ((m + 4)², tiles, K)
                found = (self.after @ products.view(side * side, -1)).view(tile, tile, *some.shape[2:5], count)
                torch.add(found.permute(2, 3, 0, 4, 1, 5), self.bias, out=y[i : i + images, row : row + piece])
        return y.view(n, height, width, count).permute(0, 3, 1, 2)


def replace_convs(net: nn.Module, calls: Sequence[Call]) -> int:
    """Replace the 5×5 convolutions for which Winograd's algorithm pays, in place. Return how many.

    The other 5×5 convolutions become channels-last, in which those of few channels are computed faster.
    calls: of `watch`.
    """
    shapes = {call.module: call.shape for call in calls}
    replaced = 0
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is not nn.Conv2d or not _is_known(conv) or not _is_plain(conv, TAPS):
                continue
            conv.to(memory_format=torch.channels_last)
            channels = min(conv.in_channels, conv.out_channels)
            tile = 2 if channels >= MANY else 4
            if channels >= FEWEST and conv in shapes and not any(side % tile for side in shapes[conv][2:]):
                setattr(parent, name, WinogradConv(conv, tile))
                replaced += 1
    return replaced


def _transforms(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Toom and Cook's matrices in float64: outputs from products (m, m + 4), kernel (m + 4, 5), inputs
    (m + 4, m + 4)."""
    points, side = np.array(POINTS[tile]), tile + TAPS - 1
    others = [np.delete(points, i) for i in range(len(points))]
    scale = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    kernel = np.zeros((side, TAPS))
    kernel[:-1] = points[:, None] ** np.arange(TAPS) / scale[:, None]
    kernel[-1, -1] = 1  # the point at infinity
    after = np.zeros((tile, side))
    after[:, :-1] = points ** np.arange(tile)[:, None]
    after[-1, -1] = 1
    before = np.zeros((side, side))
    for i, rest in enumerate(others):
        before[i, :-1] = np.polynomial.polynomial.polyfromroots(rest)
    before[-1] = np.polynomial.polynomial.polyfromroots(points)
    return torch.from_numpy(after), torch.from_numpy(kernel), torch.from_numpy(before)
