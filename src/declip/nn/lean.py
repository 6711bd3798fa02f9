"""A trained network made lean for use: the same function with less to compute, or nearly the same in bf16."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.fusion import fuse_conv_bn_weights

from declip.nn.decoders import Stem
from declip.nn.model import Network

__all__ = ["fold", "has_bf16", "narrow", "quicken", "watch"]

# CLIP's QuickGELU is x · sigmoid(1.702 x).
QUICK = 1.702


# What torch calls the instructions of x86 and ARM processors for bf16; without them it is computed several times slower
# than fp32.
BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there. Of a CPU, torch releases that do not list its instructions say no."""
    if device.type != "cpu":
        return True
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name) for name in BF16)


def fold(net: nn.Module, image: Tensor) -> int:
    """Fold each BatchNorm into the convolution before it, and QuickGELU's factor into the layers around it, in place.

    For a network in eval mode that is not trained any more; its answers stay the same but for rounding. image: an
    input (1, 3, S, S), which shows what follows what. Returns the number of layers folded.
    """
    pairs = _followed(net, image)
    for conv, norm, parent, name in pairs:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        setattr(parent, name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    blocks: list[Any] = [module for module in net.modules() if _is_quick(module)]
    with torch.no_grad():
        for block in blocks:
            block.fc1.weight *= QUICK
            block.fc1.bias *= QUICK
            block.fc2.weight /= QUICK
            block.act = nn.SiLU(inplace=True)
    return len(pairs) + len(blocks)


class Taps(nn.Module):
    """What each tap of a k × k convolution to one map finds: (N, C, H, W) → (N, k², H, W)."""

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # The value at a place goes to where the tap finds it: from the other side.
        flipped = conv.weight.detach()[0].flip(1, 2)  # (C, k, k)
        self.register_buffer("weight", flipped.flatten(1).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, k², H, W)."""
        found = self.weight @ x.flatten(2)
        return found.view(*found.shape[:2], *x.shape[2:])


class ShiftedSum(nn.Module):
    """The sum of the taps' maps, each where it belongs: (N, k², H, W) → (N, 1, H, W)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.side = conv.kernel_size[0]
        self.bias = conv.bias

    def forward(self, maps: Tensor) -> Tensor:
        """(N, k², H, W) → (N, 1, H, W)."""
        size = (maps.shape[2], maps.shape[3])
        y = F.fold(maps.flatten(2), size, self.side, padding=self.side // 2)
        return y if self.bias is None else y + self.bias


def narrow(net: nn.Module) -> int:
    """Let a convolution to one map come before the enlargement that it followed, in place; returns how many did.

    With one kernel a convolution is slow on CPUs. As a matrix it has k² maps, fewer than the channels it reads, and
    only they are enlarged: the same function, for both are linear and each channel is enlarged by itself.
    """
    found = 0
    for parent in list(net.modules()):
        children = list(parent.named_children()) if isinstance(parent, nn.Sequential) else []
        for (before, enlarge), (after, conv) in itertools.pairwise(children):
            if isinstance(enlarge, nn.Upsample) and isinstance(conv, nn.Conv2d) and _is_narrow(conv):
                setattr(parent, before, Taps(conv))
                setattr(parent, after, nn.Sequential(enlarge, ShiftedSum(conv)))
                found += 1
    return found


def quicken(net: Network, *, compiled: bool = False) -> Callable[..., Tensor]:
    """The network for bf16, changed in place: to be called under autocast. Statistics of residuals stay in fp32.

    compiled: by torch.compile, which takes its time with the first batch of each size.
    """
    kept = {module.residuals for module in net.modules() if isinstance(module, Stem)}
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in kept:
            # Under autocast the same would happen again in every call.
            module.to(torch.bfloat16)
    net.to(memory_format=torch.channels_last)
    if compiled:
        return torch.compile(net)
    return net


def _followed(net: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, Any, nn.Module, str]]:
    """Convolutions with the BatchNorm that takes their output in the same module, and where that is (parent, name)."""
    homes = {child: (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    convolution_of: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by id of its output, which is held meanwhile
    found: list[tuple[nn.Conv2d, Any, nn.Module, str]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            convolution_of[id(output)] = module, output
        elif id(inputs[0]) in convolution_of:
            conv = convolution_of[id(inputs[0])][0]
            parent, name = homes[module]
            if homes[conv][0] is parent:
                found.append((conv, module, parent, name))

    foldable = nn.Conv2d | nn.BatchNorm2d
    watch(net, image, [module for module in net.modules() if isinstance(module, foldable)], note)
    return found


def watch(net: nn.Module, image: Tensor, modules: Iterable[nn.Module], note: Callable[..., None]) -> None:
    """Run a network once without computing (fake tensors); note is called with each of these modules, its inputs and
    its output, as they come."""
    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            net(mode.from_tensor(image))
    finally:
        for hook in hooks:
            hook.remove()


def _is_narrow(conv: nn.Conv2d) -> bool:
    """Odd and square, of the size of its input, with fewer taps than channels."""
    k = conv.kernel_size[0]
    shape = (conv.out_channels, conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.padding_mode)
    return k % 2 == 1 and k * k < conv.in_channels and shape == (1, (k, k), (k // 2, k // 2), (1, 1), (1, 1), "zeros")


def _is_quick(module: Any) -> bool:
    """A timm MLP with QuickGELU between two linear layers."""
    if not isinstance(getattr(module, "act", None), QuickGELU):
        return False
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in ("fc1", "fc2"))
