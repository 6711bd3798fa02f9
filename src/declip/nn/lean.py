"""A trained network made lean for use: the same function with less to compute, or nearly the same in bf16."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from timm.layers.mlp import Mlp
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from declip.nn.decoders import Stem
from declip.nn.model import Network

__all__ = ["Call", "fold", "has_bf16", "narrow", "quicken", "watch"]

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


class Call(NamedTuple):
    """One use of a convolution or BatchNorm. source: the convolution whose output nothing but this takes; shape: of its
    own output."""

    module: nn.Module
    source: nn.Conv2d | None
    shape: torch.Size


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, counts the operators that compute with a tensor, by its id; one in place, too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "prim":  # which ask for its device, say
            self.of.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))


def watch(net: nn.Module, image: Tensor) -> list[Call]:
    """Run a network once without computing (fake tensors), on an image (1, 3, S, S): what `fold` and
    `winograd.quicken` go by."""
    convolved: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the output's id, which it keeps as it is held here
    ran: list[tuple[nn.Module, tuple[nn.Conv2d, Tensor] | None, torch.Size]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ran.append((module, convolved.get(id(inputs[0])), output.shape))
        if isinstance(module, nn.Conv2d):
            convolved[id(output)] = module, output
            uses.of[id(output)] = 0  # what was counted there is of a tensor that is gone

    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode(), _Uses() as uses:
            net(mode.from_tensor(image))
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(module for module, _, _ in ran)
    calls = []
    for module, before, shape in ran:
        alone = before is not None and times[module] == times[before[0]] == uses.of[id(before[1])] == 1
        calls.append(Call(module, before[0] if before and alone else None, shape))
    return calls


def fold(net: nn.Module, calls: Sequence[Call]) -> int:
    """Fold each BatchNorm into the convolution before it, and QuickGELU's factor into the layers around it, in place.

    For a network in eval mode that is not trained any more; its answers stay the same but for rounding. calls: of
    `watch`, which show what follows what. Returns the number of layers folded.
    """
    pairs = _followed(net, calls)
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


def _followed(net: nn.Module, calls: Sequence[Call]) -> list[tuple[nn.Conv2d, Any, nn.Module, str]]:
    """Convolutions with the BatchNorm that takes their output in the same module, and where that is (parent, name)."""
    homes = {child: (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    found: list[tuple[nn.Conv2d, Any, nn.Module, str]] = []
    for norm, conv, _ in calls:
        if isinstance(norm, nn.BatchNorm2d) and conv is not None:
            parent, name = homes[norm]
            if homes[conv][0] is parent:
                found.append((conv, norm, parent, name))
    return found


def _is_narrow(conv: nn.Conv2d) -> bool:
    """Odd and square, of the size of its input, with fewer taps than channels."""
    k = conv.kernel_size[0]
    shape = (conv.out_channels, conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.padding_mode)
    return k % 2 == 1 and k * k < conv.in_channels and shape == (1, (k, k), (k // 2, k // 2), (1, 1), (1, 1), "zeros")


def _is_quick(module: Any) -> bool:
    """A timm MLP with nothing but QuickGELU between two linear layers."""
    if not (isinstance(module, Mlp) and isinstance(module.act, QuickGELU) and isinstance(module.norm, nn.Identity)):
        return False
    return isinstance(module.fc1, nn.Linear) and isinstance(module.fc2, nn.Linear)
