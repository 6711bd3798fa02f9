"""A network that is changed for a CPU or for bf16 computes what it computed before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, Mlp, QuickGELU, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from declip.models import probe
from declip.nn import cpu
from declip.nn.dilated import Stem
from declip.nn.model import build
from declip.nn.statistics import ResidualStatistics
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec

pytestmark = pytest.mark.usefixtures("one_torch_thread")

VIT = BackboneSpec(name="vit_tiny_patch16_224", layer=1)
QUICK = BackboneSpec(name="vit_base_patch32_clip_quickgelu_224", layer=1)
MINI = (
    BackboneSpec(name="residual-statistics", layer=0),
    BackboneSpec(name="block-statistics", layer=0),
    BackboneSpec(name="tf_efficientnet_lite0", layer=1),
)
SPECS = {
    # With the number of layers to fold: the backbone's up to its layer, and the decoder's.
    "vit": (ModelSpec(backbones=(VIT,), decoder=DecoderSpec(kind="conv-4", widths=(8, 8, 8, 8))), 4),
    "resnet": (
        ModelSpec(
            backbones=(BackboneSpec(name="resnet18", layer=2),), decoder=DecoderSpec(kind="conv-4", widths=(8, 8, 8, 8))
        ),
        1 + 4 + 5 + 4,
    ),
    "quick": (ModelSpec(backbones=(QUICK,), decoder=DecoderSpec(kind="linear")), 2),
    "mini": (
        ModelSpec(
            backbones=MINI, decoder=DecoderSpec(kind="dilated", widths=(8, 16, 16)), input_size=64, output_size=16
        ),
        1 + 2 + 2 * 3 + 2 * 2 + 2,
    ),
}


def network(spec: ModelSpec) -> nn.Module:
    """With BatchNorms that have seen something."""
    torch.manual_seed(0)
    net = build(spec, load_weights=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


@pytest.mark.parametrize(
    "name", ["resnet", "mini", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit", "quick"))]
)
def test_folding_changes_nothing_but_rounding(name: str) -> None:
    spec, folded = SPECS[name]
    net, image = network(spec), torch.from_numpy(probe.picture(spec))
    others = torch.randn(2, 3, spec.input_size, spec.input_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(others)
        assert cpu.fold(net, cpu.watch(net, image)) == folded
        found = net(others)
    assert float((found - expected).abs().max()) <= 3e-5 * float(expected.std())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert cpu.fold(net, cpu.watch(net, image)) == 0  # nothing twice


@pytest.mark.parametrize("name", ["vit", "mini"])
def test_bf16_is_close_and_leaves_statistics_exact(name: str) -> None:
    spec, _ = SPECS[name]
    net, image = network(spec), torch.from_numpy(probe.picture(spec))
    with torch.no_grad():
        expected = net(image)
        quick = cpu.use_bf16(copy.deepcopy(net))
        with torch.autocast("cpu", torch.bfloat16):
            found = quick(image).float()
            if name == "mini":
                statistics = next(m for m in net.modules() if isinstance(m, ResidualStatistics))
                assert torch.equal(
                    statistics(image).maps[0],
                    next(m for m in quick.modules() if isinstance(m, ResidualStatistics))(image).maps[0],
                )
    drift = float((found - expected).square().mean().sqrt() / expected.std())
    assert 1e-4 < drift < 0.1  # it is bf16, and it is near


def test_the_filters_on_pixels_stay_in_fp32() -> None:
    spec = ModelSpec(
        backbones=(BackboneSpec(name="pixels", layer=0), *MINI[:1]),
        decoder=DecoderSpec(kind="dilated", widths=(8, 16, 16), stem=(4, 8, 8)),
        input_size=64,
        output_size=16,
    )
    net = cpu.use_bf16(build(spec, load_weights=False))
    assert isinstance(net, nn.Module)
    stem = next(m for m in net.modules() if isinstance(m, Stem))
    assert stem.residuals.weight.dtype == torch.float32
    assert stem.layers[2].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_one_map_is_found_before_it_is_enlarged(taps: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 1, taps, padding=taps // 2, bias=bias)
    net = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), conv).eval()
    images = torch.randn(2, 32, 6, 9)
    with torch.no_grad():
        expected = net.double()(images.double())
        assert cpu.narrow(net.float()) == 1
        for given in (images, images.contiguous(memory_format=torch.channels_last)):
            found = net(given)
            assert found.shape == expected.shape == (2, 1, 12, 18)
            assert float((found - expected).abs().max() / expected.std()) < 1e-5
    assert cpu.narrow(net) == 0


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 2, 5, padding=2)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(25, 1, 5, padding=2)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 1, 5)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 1, 5, padding=2, padding_mode="reflect")),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.ReLU(), nn.Conv2d(32, 1, 5, padding=2)),
        nn.Sequential(nn.Conv2d(32, 1, 5, padding=2)),
    ],
)
def test_other_ends_stay(net: nn.Module) -> None:
    assert cpu.narrow(net) == 0


class Discarding(nn.Module):
    """A network that gives what a convolution left, and makes nothing of its BatchNorm's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        feature: torch.Tensor = self.conv(image)
        self.norm(feature)
        return feature * 2


class Tapped(nn.Module):
    """A BatchNorm in another module than the convolution whose output it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.rest = nn.Sequential(nn.BatchNorm2d(4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = self.conv(image)
        return self.rest(y) + y


class Features(nn.Module):
    """A network whose decoder takes what a convolution gave, and what became of it behind its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.decoder = nn.Conv2d(8, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        feature = self.conv(image)
        decoded: torch.Tensor = self.decoder(torch.cat([feature, self.act(self.norm(feature))], 1))
        return decoded


class Shared(nn.Module):
    """A convolution that is used twice, once with its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        normal: torch.Tensor = self.norm(self.conv(self.conv(image)))
        return normal


@pytest.mark.parametrize(
    ("parts", "folded"),
    [
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), 1),
        # In place, it gives the BatchNorm the very tensor that the convolution gave.
        ((nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)), 0),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 0),
        ((Features(),), 0),
        ((Shared(),), 0),
        ((Discarding(),), 0),
        ((Tapped(),), 0),
    ],
    ids=["plain", "in-place", "between", "feature", "shared", "discarding", "tapped"],
)
def test_only_what_nothing_else_takes_is_folded(parts: tuple[nn.Module, ...], folded: int) -> None:
    net = copy.deepcopy(nn.Sequential(*parts)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.running_mean, 0.5)
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(image)
        assert cpu.fold(net, cpu.watch(net, image)) == folded
        assert float((net(image) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["ghostnet_050", "resnet18"])
def test_two_layers_of_a_backbone_stay_what_they_were(name: str) -> None:
    """timm's ghostnet gives what its first convolution leaves as its first feature."""
    layers = tuple(BackboneSpec(name=name, layer=layer) for layer in (0, 1))
    spec = ModelSpec(backbones=layers, decoder=DecoderSpec(kind="linear"))
    net, image = network(spec), torch.from_numpy(probe.picture(spec))
    with torch.no_grad():
        expected = net(image)
        assert cpu.fold(net, cpu.watch(net, image)) > 0
        assert float((net(image) - expected).abs().max()) <= 3e-5 * float(expected.std())


# --- layers that are none of torch's own ------------------------------------------------------------------------------


class Doubling(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Offset(nn.BatchNorm2d):
    """A BatchNorm with a forward pass of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


class Squared(nn.Linear):
    """A linear layer that makes its weight in each call."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.square(), self.bias)


def replaced_forward(conv: nn.Conv2d) -> nn.Conv2d:
    conv.forward = lambda input: conv._conv_forward(input, conv.weight.square(), None)  # type: ignore[method-assign]
    return conv


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        Doubling,
        lambda *sizes, **rest: StdConv2d(*sizes, **rest, bias=True),
        ScaledStdConv2d,
        lambda *sizes, **rest: weight_norm(nn.Conv2d(*sizes, **rest)),
        lambda *sizes, **rest: parametrizations.spectral_norm(nn.Conv2d(*sizes, **rest)),
        lambda *sizes, **rest: replaced_forward(nn.Conv2d(*sizes, **rest)),
    ],
    ids=["derived", "StdConv2d", "ScaledStdConv2d", "weight_norm", "spectral_norm", "replaced"],
)
def test_convolutions_that_make_their_weight_anew_stay(make: Callable[..., nn.Conv2d]) -> None:
    torch.manual_seed(0)
    large = make(64, 64, 5, padding=2)  # that Winograd's algorithm pays for, were it torch's
    last = make(64, 1, 1, padding=0)
    net = nn.Sequential(nn.Conv2d(3, 64, 1), large, nn.BatchNorm2d(64), nn.Upsample(scale_factor=2), last).eval()
    nn.init.uniform_(net[2].running_var, 2, 3)
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(image)
        calls = cpu.watch(net, image)
        assert (cpu.fold(net, calls), cpu.narrow(net), cpu.replace_convs(net, calls)) == (0, 0, 0)
        assert torch.equal(net(image), expected)
        cpu.use_bf16(net)
        assert (net[0].weight.dtype, last.weight.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("parts", "folded"),
    [
        ((Conv2dSame(3, 4, 3, stride=2), nn.BatchNorm2d(4)), 1),
        ((nn.Conv2d(3, 4, 3), Offset(4)), 0),
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 0),
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), 1),
        ((Mlp(8, act_layer=QuickGELU),), 1),
        ((Mlp(8, act_layer=QuickGELU, bias=False),), 0),
    ],
    ids=["same", "derived-norm", "no-statistics", "no-gains", "mlp", "mlp-without-bias"],
)
def test_only_what_is_known_is_folded(parts: tuple[nn.Module, ...], folded: int) -> None:
    torch.manual_seed(0)
    net = copy.deepcopy(nn.Sequential(*parts)).eval()
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(image)
        assert cpu.fold(net, cpu.watch(net, image)) == folded
        assert float((net(image) - expected).abs().max()) < 1e-5


def test_a_linear_layer_of_ones_own_in_an_mlp_stays() -> None:
    mlp = Mlp(8, act_layer=QuickGELU).eval()
    mlp.fc1 = Squared(8, 8)
    features = torch.randn(2, 8)
    with torch.no_grad():
        expected = mlp(features)
        assert cpu.fold(mlp, []) == 0
        assert torch.equal(mlp(features), expected)


# --- Winograd's algorithm, against the plain convolution in double precision ---


@pytest.mark.parametrize(("tile", "error"), [(2, 2e-6), (4, 1e-5)])
@pytest.mark.parametrize(
    ("channels", "kernels", "size", "bias"),
    [(1, 1, (4, 4), True), (3, 5, (8, 12), False), (32, 16, (16, 16), True)],
)
def test_it_is_a_convolution(
    channels: int, kernels: int, size: tuple[int, int], bias: bool, tile: int, error: float
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, kernels, 5, padding=2, bias=bias)
    images = torch.randn(3, channels, *size)
    with torch.no_grad():
        exact = F.conv2d(
            images.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=2
        )
        for given in (images, images.contiguous(memory_format=torch.channels_last)):
            found = cpu.WinogradConv(conv, tile)(given)
            assert found.shape == exact.shape
            assert float((found - exact).abs().max() / exact.std()) < 1e-4
            assert float((found - exact).std() / exact.std()) < error


@pytest.mark.parametrize("piece", [1, 1 << 16, 1 << 30])
def test_pieces_of_any_size_give_the_same(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 5, padding=2)
    images = torch.randn(3, 8, 24, 16)
    monkeypatch.setattr(cpu, "PIECE", 0)
    with torch.no_grad():
        layer = cpu.WinogradConv(conv, 4)
        expected = layer(images)  # of few bytes for kernels: in many pieces
        monkeypatch.setattr(cpu, "PIECE", piece)
        assert float((layer(images) - expected).abs().max()) < 1e-5


def test_what_pays_is_replaced() -> None:
    torch.manual_seed(0)
    spec = ModelSpec(
        backbones=(BackboneSpec(name="vit_tiny_patch16_224", layer=0),),
        decoder=DecoderSpec(kind="conv-12", widths=(512, 256, 64, 8)),
    )
    net = build(spec, load_weights=False)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = net(image)
        # On 14 × 14 one that reads 192 channels, in tiles of 4, and two of 512, in tiles of 2; on 28 × 28 three of 256
        # and on 56 × 56 three of 64, in tiles of 4; those of 8 channels stay.
        assert cpu.replace_convs(net, cpu.watch(net, image)) == 8
        tiles = [module.tile for module in net.modules() if isinstance(module, cpu.WinogradConv)]
        assert tiles == [2, 2, 4, 4, 4, 4, 4, 4]
        found = net(image)
    assert float((found - expected).abs().max() / expected.std()) < 1e-4


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(256, 256, 3, padding=1),
        nn.Conv2d(256, 256, 5, padding=2, stride=2),
        nn.Conv2d(256, 256, 5, padding=2, groups=2),
        nn.Conv2d(256, 256, 5, padding=4, dilation=2),
        nn.Conv2d(256, 256, 5, padding=2, padding_mode="reflect"),
        nn.Conv2d(256, 63, 5, padding=2),
    ],
)
def test_what_it_does_not_compute_stays(conv: nn.Conv2d) -> None:
    net = nn.Sequential(conv)
    assert cpu.replace_convs(net, cpu.watch(net, torch.randn(1, 256, 8, 8))) == 0


def test_a_network_is_watched_in_inference_mode_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    with torch.inference_mode():
        first, second = cpu.watch(net, torch.rand(1, 3, 16, 16))
    assert (first.module, second.module) == (net[0], net[1])
    assert second.source is net[0] and second.shape == (1, 8, 14, 14)
