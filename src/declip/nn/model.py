"""DeclipNet: frozen backbones and one decoder; the order of things, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.backbones import Features, build_backbones, extract, probe
from declip.nn.decoders import build_decoder
from declip.nn.rivals.net import RivalNet, build_rival
from declip.spec import ModelSpec

__all__ = ["DeclipNet", "Network", "build", "build_network"]


Network: TypeAlias = "DeclipNet | RivalNet"


class DeclipNet(nn.Module):
    """A picture → logits.

    backbones: modules (N, 3, S, S) → Features; decoder: Features → (N, T, T). Use `build` for a ModelSpec, or pass
    modules of your own that keep these shapes (`nn/own.py`).
    """

    def __init__(self, backbones: Sequence[nn.Module], decoder: nn.Module) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.decoder = decoder
        self.backbones.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> DeclipNet:
        """Set the mode of the decoder. Backbones stay in eval: BatchNorm statistics must not move, nor dropout act."""
        super().train(mode)
        self.backbones.train(False)
        return self

    def forward(self, image: Tensor, photo_mean: Tensor | None = None) -> Tensor:
        """image (N, 3, S, S), float, normalised RGB → logits (N, T, T); sigmoid outside.

        photo_mean: (N, C), of `means` of the photo's tiles, for a decoder that has them; None = each window's own.
        """
        features = self.features(image)
        if photo_mean is None:
            return self.decode(features)
        logits: Tensor = self.decoder(features, photo_mean)
        return logits

    def means(self, image: Tensor) -> Tensor:
        """image (N, 3, S, S) → (N, C) float32: what a decoder of the kind dilated measures these windows against."""
        decoder: Any = self.decoder
        means: Tensor = decoder.means(self.features(image))
        return means

    def features(self, images: Tensor) -> Features:
        """Run the frozen half: images (N, 3, S, S) → Features."""
        return extract(list(self.backbones), images)

    def decode(self, features: Features) -> Tensor:
        """Run the learnt half: Features → logits (N, T, T)."""
        logits: Tensor = self.decoder(features)
        return logits

    def learnt_parameters(self) -> Iterator[nn.Parameter]:
        """Return what training changes: the parameters of the decoder."""
        return self.decoder.parameters()


def build(spec: ModelSpec, *, load_weights: bool = True, offline: bool = False) -> DeclipNet:
    """Build the network a spec describes, decoder at random.

    load_weights: fetch the backbones' published weights; False when only shapes matter. offline: never download.
    Raises SpecError if the spec cannot be built, WeightsError if weights are missing.
    """
    if not spec.traits.has_decoder or spec.decoder is None:
        raise SpecError(f"architecture {spec.architecture!r} has no backbone and decoder; build_network builds it")
    backbones = build_backbones(
        spec.backbones, input_size=spec.input_size, std=spec.std, load_weights=load_weights, offline=offline
    )
    shape = probe(backbones, spec.input_size)
    if len(shape.channels) != len(spec.backbones):
        raise SpecError(
            f"the backbones gave {len(shape.channels)} maps; expected one for each of {len(spec.backbones)}"
        )
    return DeclipNet(backbones, build_decoder(spec.decoder, shape, spec.output_size)).eval()


def build_network(spec: ModelSpec, *, load_weights: bool = True, offline: bool = False) -> Network:
    """Build the network of any architecture; arguments and errors as for `build`."""
    if spec.traits.has_decoder:
        return build(spec, load_weights=load_weights, offline=offline)
    return build_rival(spec, load_weights=load_weights, offline=offline)
