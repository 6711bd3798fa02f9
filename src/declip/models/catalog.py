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

from declip.errors import WeightsError
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


_BUCKET = "https://storage.googleapis.com/bitdefender_ml_artifacts/declip"
_DOLOS = ("ldm", "repaint", "lama", "pluralistic")

_VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224.openai", layer=20)
_RN50 = BackboneSpec(name="resnet50_clip_gap.openai", layer=3)
_CONV20 = DecoderSpec(kind="conv-20")
# Of each family of the authors' checkpoints: its spec, words, place in the bucket (with a literal +, percent-encoded),
# and size: decoder (52.2 and 65.3 million parameters) and AdamW's state in float32, to within a megabyte.
_FAMILIES = {
    "vit-l14": (
        ModelSpec(backbones=(_VIT,), decoder=_CONV20),
        "CLIP ViT-L/14 block 20",
        "backbone_VIT/ViT_layer20",
        627_000_000,
    ),
    "fusion": (
        ModelSpec(backbones=(_VIT, _RN50), decoder=_CONV20),
        "CLIP ViT-L/14 block 20 + RN50 layer3",
        "backbone_VIT%2BRN50/ViT_layer20%2BRN50_layer3",
        784_000_000,
    ),
}


def _official(family: str, name: str, trained_on: str, *numbers: tuple[str, float]) -> ModelCard:
    """One of the authors' checkpoints."""
    spec, words, place, size = _FAMILIES[family]
    data = "repaint-p2-9k" if name == "repaint" else name
    return ModelCard(
        name=f"{family}-conv20-{name}",
        summary=f"{words}, conv-20, trained on {trained_on}",
        spec=spec,
        file=f"{family}-conv20-{name}.pth",
        urls=(f"{_BUCKET}/{place}_conv-20_{data}.pth",),
        size_bytes=size,
        license="CC BY-NC-SA 4.0",
        trained_on=trained_on,
        numbers=numbers,
    )


def _dolos(metric: str, *values: float) -> list[tuple[str, float]]:
    """One metric on the four Dolos test sets."""
    return [(f"dolos-{data} {metric}", v) for data, v in zip(_DOLOS, values, strict=True)]


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
    _official(
        "vit-l14",
        "ldm",
        "Dolos LDM",
        *_dolos("iou", 0.4870, 0.4371, 0.4263, 0.5555),
        *_dolos("f1-best", 0.697, 0.674, 0.682, 0.756),
        *_dolos("f1-fixed", 0.562, 0.516, 0.501, 0.626),
        *_dolos("ap", 0.695, 0.673, 0.671, 0.756),
    ),
    _official("vit-l14", "repaint", "Dolos RePaint-P2"),
    _official("vit-l14", "lama", "Dolos LaMa"),
    _official("vit-l14", "pluralistic", "Dolos Pluralistic"),
    _official("vit-l14", "cocosd", "COCO-SD"),
    _official(
        "fusion",
        "ldm",
        "Dolos LDM",
        *_dolos("iou", 0.5103, 0.4475, 0.4355, 0.5646),
        *_dolos("f1-best", 0.726, 0.693, 0.694, 0.782),
        *_dolos("f1-fixed", 0.604, 0.549, 0.530, 0.655),
        *_dolos("ap", 0.727, 0.690, 0.687, 0.787),
    ),
    _official("fusion", "repaint", "Dolos RePaint-P2", *_dolos("iou", 0.274, 0.740, 0.424, 0.542)),
    _official("fusion", "lama", "Dolos LaMa", *_dolos("iou", 0.216, 0.295, 0.865, 0.320)),
    _official("fusion", "pluralistic", "Dolos Pluralistic", *_dolos("iou", 0.049, 0.081, 0.519, 0.837)),
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
