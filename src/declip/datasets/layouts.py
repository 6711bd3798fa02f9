"""Load data sets as they lie on disk: one function per layout, which returns samples.

Samples are sorted by path, manipulated ones before real ones. No picture is opened. A picture is a file with an image
extension; other files and hidden names are ignored, and folders are read by `files.walk`. A manipulated picture without
its mask, or a mask without its picture, is a DatasetError that counts them and names the first ones.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from declip.errors import DatasetError
from declip.files import Skipped, read_text, walk
from declip.images.read import EXTENSIONS
from declip.results import Polarity, Sample

__all__ = ["autosplice", "coco_sd", "dolos", "folder", "imdl"]

Faces = Literal["celebahq", "ffhq"]
Quality = Literal[75, 90, 100]

_SPLITS = ("train", "valid", "test")
_GENERATORS: dict[Faces, tuple[str, ...]] = {
    "celebahq": ("lama", "ldm", "pluralistic", "repaint-p2-9k", "repaint-p2", "p2"),
    "ffhq": ("repaint-p2", "p2"),
}
# A message names this many offenders.
_NAMED = 3

_log = logging.getLogger(__name__)


def dolos(
    root: str | Path,
    generator: str | Sequence[str] = (),
    *,
    split: str | None = None,
    faces: Faces = "celebahq",
    reals: bool = False,
) -> list[Sample]:
    """Load Dolos: faces of 256×256 px, in-painted by one generator or by several; black = manipulated.

        ROOT/FACES/fake/GENERATOR/{images,masks}/{train,valid,test}/ID-k.png    ROOT/FACES/real/{train,valid,test}/ID.*

    generator: one name or several: of celebahq "lama", "ldm", "pluralistic", "repaint-p2-9k" (9,000, 900 and 900
    pictures each), "repaint-p2" (30,000) and "p2"; of ffhq "repaint-p2" and "p2". split: one, or None for those of the
    three that exist. reals: add the real photos of the same splits, once.

    "p2" pictures are generated as a whole: fake/p2/{train,valid,test} holds fakes without masks, for scores of whole
    images (`read_mask` refuses them), and without a group. For all others the group is the ID (of ffhq: "ffhq-ID"),
    which the variants ID-0, ID-1, … and the real photo ID share. source: the generator; of real photos, the faces.

    Raises DatasetError for an unknown name, a missing folder, and masks that do not fit the pictures.
    """
    if faces not in _GENERATORS:
        raise DatasetError(f"faces are {faces!r}; expected one of {', '.join(_GENERATORS)}")
    prefix = "" if faces == "celebahq" else f"{faces}-"
    samples: dict[Path, Sample] = {}  # by their images, since all generators share the real photos
    names, known = [generator] if isinstance(generator, str) else generator, ", ".join(_GENERATORS[faces])
    if not names:
        raise DatasetError(f"dolos needs a generator; expected one or several of {known} (--generator lama,ldm)")
    for name in names:
        if name not in _GENERATORS[faces]:
            raise DatasetError(f"{name!r} is no generator of Dolos' {faces}; expected one of {known}")
        base = Path(root) / faces / "fake" / name
        images, masks = (base, None) if name == "p2" else (base / "images", base / "masks")
        parts = _parts(split, images, masks)
        found = _fakes(images, masks, parts, fake_is="black", source=name, prefix=prefix)
        found += _reals(Path(root) / faces / "real", parts, source=faces, prefix=prefix) if reals else []
        samples |= {sample.image: sample for sample in found}
    return list(samples.values())


def autosplice(
    root: str | Path, *, quality: Quality | None = None, reals: bool = True, split: str = ""
) -> list[Sample]:
    """Load AutoSplice: news photos in-painted by DALL-E 2 and saved as JPEG of three qualities; white = fake.

        ROOT/Forged_JPEG{75,90,100}/ID_k.jpg (3,621 each)    ROOT/Mask/ID_mask.png    ROOT/Authentic/ID.jpg (2,273)

    quality: of the manipulated pictures; None = all three, which show the same contents. reals: append the authentic
    photos. split: written into the samples.

    Assumed from the published names: what stands before the last "_" of a manipulated picture is the name of its
    photo. That is the group of all variants and of the authentic photo; the variants also share the mask. source:
    "autosplice-jpeg75", …; of authentic photos "autosplice".

    A mask whose authentic photo is there, but no manipulated picture, is counted in the log. Raises DatasetError for a
    mask without either, a manipulated picture without its mask, and a folder that is not there.
    """
    if quality not in (None, *get_args(Quality)):
        raise DatasetError(f"quality is {quality!r}; expected 75, 90, 100, or None for all three")
    root = Path(root)
    samples = []
    for each in get_args(Quality) if quality is None else (quality,):
        for image in _pictures(root / f"Forged_JPEG{each}"):
            group = image.stem.rpartition("_")[0] or image.stem
            mask, source = root / "Mask" / f"{group}_mask.png", f"autosplice-jpeg{each}"
            samples.append(Sample(image=image, mask=mask, label="fake", split=split, source=source, group=group))
    masks = set(_pictures(root / "Mask"))
    photos = _pictures(root / "Authentic") if reals or (root / "Authentic").is_dir() else []
    spare = masks.intersection(root / "Mask" / f"{photo.stem}_mask.png" for photo in photos)
    spare -= {sample.mask for sample in samples}
    if spare:
        _log.warning("%d masks in %s belong to photos without a manipulated picture", len(spare), root / "Mask")
    _check_masks(samples, masks - spare)
    if reals:
        samples += [Sample(image=p, label="real", split=split, source="autosplice", group=p.stem) for p in photos]
    return samples


def coco_sd(root: str | Path, *, split: str | None = None) -> list[Sample]:
    """Load COCO photos in-painted by Stable Diffusion; white = fake.

    The paper's pictures were never released. This layout is declip's own, for those who make them anew:

        ROOT/{images,masks}/{train,valid,test}/ID-k.* (masks: .png)    ROOT/real/{train,valid,test}/ID.*

    "-k" tells variants of one photo apart and may be missing, as may real/ as a whole. The group is the ID.
    split: one, or None for those of the three that are there. source: "coco-sd"; of real photos "coco".
    Raises DatasetError for a folder that is not there, and masks that do not fit the pictures.
    """
    images, masks, real = (Path(root) / name for name in ("images", "masks", "real"))
    parts = _parts(split, images, masks)
    samples = _fakes(images, masks, parts, fake_is="white", source="coco-sd")
    return samples + (_reals(real, parts, source="coco") if real.is_dir() else [])


def folder(
    images: str | Path,
    masks: str | Path | None = None,
    *,
    fake_is: Polarity = "white",
    mask_name: str = "{stem}.png",
    group: str | None = None,
    split: str = "",
    source: str = "",
) -> list[Sample]:
    r"""Load a folder of pictures, with its sub-folders: manipulated ones with masks, or, without masks, real ones.

    masks: folder of the masks, with the same sub-folders. It may lie in `images`, or be the same folder: what is the
        mask of another picture is no picture then. fake_is: which value of the mask files is manipulated.
    mask_name: the file name of a picture's mask; {stem} is the picture's name without its extension, {name} with it.
    group: a regular expression; what its first group (…) matches in a picture's stem is the sample's group: with
        r"^(.+)_\d+$", a_0 and a_1 are variants of "a". None: samples have no group.
    split, source: written into the samples.

    Raises DatasetError for a folder that is not there, masks that do not fit the pictures, a mask_name without {stem}
    or {name}, and a group that not every stem has.
    """
    images = Path(images)
    pictures = _pictures(images)
    if masks is None:
        return _grouped([Sample(image=path, label="real", split=split, source=source) for path in pictures], group)
    masks = Path(masks)
    mask_of = {path: masks / path.relative_to(images).parent / _mask_name(mask_name, path) for path in pictures}
    there = set(_pictures(masks))
    if masks == images:
        there.intersection_update(mask for path, mask in mask_of.items() if mask != path)
    elif masks in images.parents:
        there.difference_update(pictures)
    samples = [
        Sample(image=path, mask=mask_of[path], fake_is=fake_is, label="fake", split=split, source=source)
        for path in pictures
        if path not in there
    ]
    _check_masks(samples, there)
    return _grouped(samples, group)


def imdl(path: str | Path, *, root: str | Path | None = None, split: str = "") -> list[Sample]:
    """Load either format of IMDL-BenCo: a JSON file, or a folder with Tp/ and Gt/; white = fake.

    A JSON file holds [[image, mask or "Negative"], …], "Negative" = real; samples come in its order. Relative paths
    start at `root`, or without it at the file's own folder. In a folder, Tp/x.* has the mask Gt/x.* or Gt/x_gt.*.
    split: written into the samples. source: the name of the file or folder. There are no groups.

    Raises DatasetError if path is neither, and for files that are not there or do not fit each other.
    """
    path = Path(path)
    if path.is_dir():
        if root is not None:
            raise DatasetError(f"{path} is a folder; root is for the relative paths of a JSON file")
        return _imdl_folder(path, split)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file or folder; expected a JSON file, or a folder with Tp/ and Gt/")
    return _imdl_json(path, path.parent if root is None else Path(root), split)


def _pictures(top: Path) -> list[Path]:
    """Return the pictures below a folder, sorted; at least one."""
    if not top.is_dir():
        raise DatasetError(f"{top}: there is no such folder; is the root right, and the layout?")
    found = walk(top)
    for error in found.unreadable:
        raise DatasetError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error
    pictures = [top / path for path in found.files if path.suffix.lower() in EXTENSIONS]
    skipped = found.skipped.plus(Skipped(others=len(found.files) - len(pictures)))
    if not pictures:
        raise DatasetError(f"{top}: there are no pictures in this folder: {skipped}")
    if skipped.hidden or skipped.links:
        _log.info("%s: passed over %s", top, skipped)
    return pictures


def _parts(split: str | None, *folders: Path | None) -> list[str]:
    """Return the splits to load: the one asked for, or those that any of the folders has."""
    if split is not None:
        if split not in _SPLITS:
            raise DatasetError(f"split is {split!r}; expected one of {', '.join(_SPLITS)}, or None for all")
        return [split]
    parts = [part for part in _SPLITS if any(top is not None and (top / part).is_dir() for top in folders)]
    if not parts:
        raise DatasetError(f"{folders[0]}: no folder {', '.join(_SPLITS)} there; is the root right, and the layout?")
    return parts


def _fakes(
    images: Path, masks: Path | None, parts: Sequence[str], *, fake_is: Polarity, source: str, prefix: str = ""
) -> list[Sample]:
    """images/PART/ID-k.* with masks/PART/ID-k.png. Without masks: fakes that have none, and come from no photo."""
    samples = [
        Sample(image=path, fake_is=fake_is, label="fake", split=part, source=source)
        for part in parts
        for path in _pictures(images / part)
    ]
    if masks is None:
        return samples
    for index, sample in enumerate(samples):
        mask, group = (masks / sample.image.relative_to(images)).with_suffix(".png"), prefix + _photo_of(sample.image)
        samples[index] = dataclasses.replace(sample, mask=mask, group=group)
    _check_masks(samples, [mask for part in parts for mask in _pictures(masks / part)])
    return samples


def _reals(top: Path, parts: Sequence[str], *, source: str, prefix: str = "") -> list[Sample]:
    """top/PART/ID.*"""
    return [
        Sample(image=path, label="real", split=part, source=source, group=prefix + _photo_of(path))
        for part in parts
        for path in _pictures(top / part)
    ]


def _photo_of(path: Path) -> str:
    """Return the ID of ID-k.* and of ID.*"""
    return re.sub(r"-\d+$", "", path.stem)


def _mask_name(rule: str, path: Path) -> str:
    # In one pass, so that a stem that holds "{name}" stays as it is.
    name, found = re.subn(r"\{(stem|name)\}", lambda key: path.stem if key[1] == "stem" else path.name, rule)
    if not found:
        raise DatasetError(f"mask_name is {rule!r}; expected {{stem}} or {{name}} in it, as in '{{stem}}_mask.png'")
    return name


def _check_masks(samples: Sequence[Sample], masks: Iterable[Path]) -> None:
    """Raise unless every sample's mask is among masks, and every one of masks is a sample's."""
    masks = set(masks)
    bare = [sample for sample in samples if sample.mask not in masks]
    if bare:
        advice = f"the first one's would be {bare[0].mask}"
        _refuse([sample.image for sample in bare], f"of {len(samples)} manipulated pictures have no mask", advice)
    orphans = sorted(masks.difference(sample.mask for sample in samples if sample.mask is not None))
    _refuse(orphans, f"of {len(masks)} masks have no picture", "is the data set complete?")


def _refuse(offenders: Sequence[Path], what: str, advice: str) -> None:
    """Raise if there are offenders: how many, what is wrong, the first by name, what to do."""
    if offenders:
        more = f" and {len(offenders) - _NAMED} more" if len(offenders) > _NAMED else ""
        names = ", ".join(map(str, offenders[:_NAMED]))
        raise DatasetError(f"{len(offenders)} {what}: {names}{more}; {advice}")


def _grouped(samples: list[Sample], pattern: str | None) -> list[Sample]:
    if pattern is None:
        return samples
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"group is {pattern!r}, which is no regular expression: {error}") from error
    if rule.groups == 0:
        raise DatasetError(f"group is {pattern!r}; expected a regular expression with a group (…)")
    found = [match[1] or "" if (match := rule.search(sample.image.stem)) else "" for sample in samples]
    unmatched = [sample.image for sample, group in zip(samples, found, strict=True) if not group]
    _refuse(unmatched, f"of {len(samples)} names have no group {pattern!r}", "widen the expression")
    return [dataclasses.replace(sample, group=group) for sample, group in zip(samples, found, strict=True)]


def _imdl_folder(path: Path, split: str) -> list[Sample]:
    images, masks = path / "Tp", path / "Gt"
    there = _pictures(masks)
    by_stem = {mask.relative_to(masks).with_suffix(""): mask for mask in there}
    samples = []
    for image in _pictures(images):
        stem = image.relative_to(images).with_suffix("")
        mask = by_stem.get(stem) or by_stem.get(stem.with_name(f"{stem.name}_gt")) or masks / f"{stem}.png"
        samples.append(Sample(image=image, mask=mask, label="fake", split=split, source=path.resolve().name))
    _check_masks(samples, there)
    return samples


def _imdl_json(path: Path, base: Path, split: str) -> list[Sample]:
    samples = []
    for image, name in _imdl_records(path):
        sample = Sample(image=base / image, label="real", split=split, source=path.stem)
        samples.append(sample if name == "Negative" else dataclasses.replace(sample, mask=base / name, label="fake"))
    images, masks = [s.image for s in samples], [s.mask for s in samples if s.mask is not None]
    for kind, paths in (("pictures", images), ("masks", masks)):
        lost = [file for file in paths if not file.is_file()]
        _refuse(lost, f"of {len(paths)} {kind} in {path} are not there", f"relative paths start at {base}")
    return samples


def _imdl_records(path: Path) -> list[tuple[str, str]]:
    """Return the (image, mask or "Negative") that a JSON file lists."""
    try:
        records = json.loads(read_text(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {error}") from error
    expected = 'expected [[image, mask or "Negative"], …]'
    if not isinstance(records, list):
        raise DatasetError(f"{path}: got a {type(records).__name__}; {expected}")
    pairs = []
    for number, record in enumerate(records, start=1):
        match record:
            case ["ManiDataset" | "JsonDataset", _]:
                raise DatasetError(f"{path} is a list of data sets; load each of those that it names")
            case [str(image), str(mask)] if image and mask:
                pairs.append((image, mask))
            case _:
                raise DatasetError(f"{path}, entry {number}: got {json.dumps(record)}; {expected}")
    return pairs
