"""The models that exist: MODELS, a tuple of ModelCard. Data only; `declip models` prints it.

The nine official checkpoints are the authors' (CC BY-NC-SA 4.0: not for commercial use); no hash was published for
them, so the first download pins it. "mini" comes with declip. The rivals' weights are got by hand from their authors'
pages, where their terms are to be read, and converted.

numbers are in [0, 1]; a name reads "DATA METRIC": "dolos-ldm iou" is the mean IoU on the fakes of Dolos' LDM test
set. For the fusion models they are the authors' own; for the two trained on LDM they were measured again by an
independent group with the released weights, which also gave F1 and AP ("f1-best" takes the best threshold of every
single image: an oracle).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from declip.errors import SpecError, WeightsError
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec

__all__ = ["MODELS", "ModelCard", "find"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """A row of the catalogue: a model that exists, where it lies and under which terms.

    spec is None for a file that carries its own; file is the name under which it is cached, urls are tried in order
    (none: it comes with declip, or by hand); by_hand: where a person gets what `declip convert` then makes the file of,
    for weights that declip does not download. sha256 is None where none was published: the first download pins it.
    numbers are those measured or published for it, as (name, value).
    """

    name: str
    summary: str
    spec: ModelSpec | None
    file: str
    urls: tuple[str, ...] = ()
    by_hand: str = ""
    sha256: str | None = None
    size_bytes: int | None = None
    license: str
    trained_on: str
    numbers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.urls and self.by_hand:
            raise SpecError(f"{self.name} is downloaded or got by hand, not both")

    def fetch_by_hand(self, folder: Path) -> str:
        """Return a sentence that says which file to put where instead of a download."""
        return f"Get {self.urls[0]} by other means and put it at {folder / self.file}"


_BUCKET = "https://storage.googleapis.com/bitdefender_ml_artifacts/declip"
_LICENSE = "CC BY-NC-SA 4.0"

_VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224.openai", layer=20)
_RN50 = BackboneSpec(name="resnet50_clip_gap.openai", layer=3)
_VIT_CONV20 = ModelSpec(backbones=(_VIT,), decoder=DecoderSpec(kind="conv-20"))
_FUSION_CONV20 = ModelSpec(backbones=(_VIT, _RN50), decoder=DecoderSpec(kind="conv-20"))

# Decoder (52.2 and 65.3 million parameters) and AdamW's state in float32: what a download costs, to within a megabyte.
_VIT_BYTES = 627_000_000
_FUSION_BYTES = 784_000_000


def _vit(name: str, data: str, trained_on: str, numbers: tuple[tuple[str, float], ...] = ()) -> ModelCard:
    return ModelCard(
        name=f"vit-l14-conv20-{name}",
        summary=f"CLIP ViT-L/14 block 20, conv-20, trained on {trained_on}",
        spec=_VIT_CONV20,
        file=f"vit-l14-conv20-{name}.pth",
        urls=(f"{_BUCKET}/backbone_VIT/ViT_layer20_conv-20_{data}.pth",),
        size_bytes=_VIT_BYTES,
        license=_LICENSE,
        trained_on=trained_on,
        numbers=numbers,
    )


def _fusion(name: str, data: str, trained_on: str, numbers: tuple[tuple[str, float], ...]) -> ModelCard:
    return ModelCard(
        name=f"fusion-conv20-{name}",
        summary=f"CLIP ViT-L/14 block 20 + RN50 layer3, conv-20, trained on {trained_on}",
        spec=_FUSION_CONV20,
        file=f"fusion-conv20-{name}.pth",
        # A literal + in the bucket's names, percent-encoded.
        urls=(f"{_BUCKET}/backbone_VIT%2BRN50/ViT_layer20%2BRN50_layer3_conv-20_{data}.pth",),
        size_bytes=_FUSION_BYTES,
        license=_LICENSE,
        trained_on=trained_on,
        numbers=numbers,
    )


def _dolos(metric: str, ldm: float, repaint: float, lama: float, pluralistic: float) -> tuple[tuple[str, float], ...]:
    """One metric on the four Dolos test sets."""
    return (
        (f"dolos-ldm {metric}", ldm),
        (f"dolos-repaint {metric}", repaint),
        (f"dolos-lama {metric}", lama),
        (f"dolos-pluralistic {metric}", pluralistic),
    )


def _rival(name: str, *, summary: str, page: str, terms: str, trained_on: str) -> ModelCard:
    return ModelCard(
        name=f"{name}-official",
        summary=summary,
        spec=None,
        file=f"{name}-official.safetensors",
        by_hand=page,
        license=terms,
        trained_on=trained_on,
    )


MODELS: tuple[ModelCard, ...] = (
    ModelCard(
        name="mini",
        summary="the embedded model: small, tiled at native resolution, no torch",
        spec=None,
        file="mini.onnx",
        license="Apache-2.0",
        trained_on="public photographs, manipulated by declip.synthesis",
    ),
    _vit(
        "ldm",
        "ldm",
        "Dolos LDM",
        numbers=(
            *_dolos("iou", 0.4870, 0.4371, 0.4263, 0.5555),
            *_dolos("f1-best", 0.697, 0.674, 0.682, 0.756),
            *_dolos("f1-fixed", 0.562, 0.516, 0.501, 0.626),
            *_dolos("ap", 0.695, 0.673, 0.671, 0.756),
        ),
    ),
    _vit("repaint", "repaint-p2-9k", "Dolos RePaint-P2"),
    _vit("lama", "lama", "Dolos LaMa"),
    _vit("pluralistic", "pluralistic", "Dolos Pluralistic"),
    _vit("cocosd", "cocosd", "COCO-SD"),
    _fusion(
        "ldm",
        "ldm",
        "Dolos LDM",
        numbers=(
            *_dolos("iou", 0.5103, 0.4475, 0.4355, 0.5646),
            *_dolos("f1-best", 0.726, 0.693, 0.694, 0.782),
            *_dolos("f1-fixed", 0.604, 0.549, 0.530, 0.655),
            *_dolos("ap", 0.727, 0.690, 0.687, 0.787),
        ),
    ),
    _fusion("repaint", "repaint-p2-9k", "Dolos RePaint-P2", _dolos("iou", 0.274, 0.740, 0.424, 0.542)),
    _fusion("lama", "lama", "Dolos LaMa", _dolos("iou", 0.216, 0.295, 0.865, 0.320)),
    _fusion("pluralistic", "pluralistic", "Dolos Pluralistic", _dolos("iou", 0.049, 0.081, 0.519, 0.837)),
    _rival(
        "pscc-net",
        summary="PSCC-Net (TCSVT 2022), its authors' weights",
        page="https://github.com/proteus1991/PSCC-Net",
        terms="MIT",
        trained_on="its authors' splices, copy–moves and removals",
    ),
    _rival(
        "cat-net",
        summary="CAT-Net v2 (IJCV 2022), its authors' weights",
        page="https://github.com/mjkwon2021/CAT-Net",
        terms="code Apache-2.0, weights CC BY 4.0 (its README, since August 2026)",
        trained_on="JPEG files; its paper lists them",
    ),
    _rival(
        "patch-forensics",
        summary="Patch Forensics (ECCV 2020), one of its authors' files",
        page="https://github.com/chail/patch-forensics",
        terms="none named",
        trained_on="faces, real and generated; each file's own",
    ),
)


def find(name: str) -> ModelCard:
    """Return the card of this name. Raises WeightsError with the nearest names for an unknown one."""
    for card in MODELS:
        if card.name == name:
            return card
    near = difflib.get_close_matches(name, [card.name for card in MODELS], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise WeightsError(f"no model is called {name!r}: {hint}`declip models` lists the names; a path works as well")
