"""Verbs that make: synthesize, index, train, convert, export, batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from declip.cli.options import (
    Force,
    MaxBytes,
    MaxPixels,
    Model,
    Offline,
    Precise,
    Threshold,
    Tile,
    check_free,
    millions,
    mode_of,
)
from declip.cli.terminal import console, line, note
from declip.errors import DeclipError

if TYPE_CHECKING:
    from declip.results import Sample

__all__ = ["batch", "convert", "export", "index", "synthesize", "train"]


def synthesize(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of untouched photos.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write the data set to. An interrupted run continues there.")
    ],
    recipe: Annotated[str, typer.Option(help="Recipe: fresh, lived, or a TOML file of your own.")] = "fresh",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe, as size=320; repeatable."),
    ] = None,
    generators: Annotated[
        str | None, typer.Option(help="Generators or groups of generators, separated by commas.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed. The same seed gives the same files.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
) -> None:
    """Make data for training: from photos, manipulated pictures with masks, and their untouched twins.

    Example: declip synthesize photos --out data/train --generators telea,splice --set size=320
    """
    from declip import datasets, synthesis
    from declip.localize import folder

    given = [f"{key}={value}" for key, value in (("generators", generators), ("seed", seed)) if value is not None]
    chosen = synthesis.Recipe.read(recipe, [*(changes or []), *given])
    pictures = [pair.path for pair in folder.find_pictures([photos])[0]]
    manifest = synthesis.synthesize(pictures, chosen, out, workers=workers, progress=sys.stderr.isatty())
    made = sum(sample.label == "fake" for sample in datasets.read_manifest(manifest))
    line(str(manifest))
    raise typer.Exit(0 if made == (chosen.count or len(pictures) * chosen.per_photo) else 1)


def index(
    layout: Annotated[
        str,
        typer.Argument(
            metavar="LAYOUT",
            help="Layout of the data set: dolos, autosplice, coco-sd, folder or imdl; or a manifest (.jsonl).",
        ),
    ],
    root: Annotated[
        Path | None, typer.Argument(metavar="ROOT", help="Folder of the data set. For imdl, a folder or a JSON file.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Manifest to write.")] = None,
    split: Annotated[
        str | None, typer.Option(help="dolos, coco-sd: index only this split. Others: the split to write.")
    ] = None,
    generator: Annotated[str, typer.Option(help="dolos: names of generators, separated by commas.")] = "",
    faces: Annotated[
        Literal["celebahq", "ffhq"] | None, typer.Option(help="dolos: collection of faces. Default: celebahq.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="autosplice: JPEG quality 75, 90 or 100. Default: all.")] = None,
    reals: Annotated[
        bool | None,
        typer.Option(
            "--reals/--no-reals", help="dolos, autosplice: add the untouched photos. Default: autosplice only."
        ),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="folder: folder of the masks. Without it all pictures are real.")
    ] = None,
    mask_name: Annotated[
        str | None, typer.Option(help="folder: name of a picture's mask, with {stem} or {name}. Default: {stem}.png.")
    ] = None,
    fake_is: Annotated[
        Literal["white", "black"] | None, typer.Option(help="folder: colour that means manipulated. Default: white.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="folder: regular expression; its (…) in a file name is the photo's name.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print what is wrong with the data. The exit code is 1 if there are errors.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Write a manifest without the broken samples.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print what is wrong as JSON.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes for --check and --fix.")] = 1,
    force: Force = False,
) -> None:
    """Write the manifest of a data set, or check a manifest and leave out broken samples.

    Example: declip index folder pictures/ --masks masks/ --out samples.jsonl --check
    """
    from declip import datasets

    options = {
        "split": split,
        "generator": generator.split(",") if generator or layout == "dolos" else None,
        "faces": faces,
        "quality": quality,
        "reals": reals,
        "masks": masks,
        "mask_name": mask_name,
        "fake_is": fake_is,
        "group": group,
    }
    datasets.check_options(layout, options)
    _check_index(layout, root, out, check=check, fix=fix, as_json=as_json)
    target = Path(layout) if fix and out is None else out
    if target is not None:
        check_free(target, force)
    if root is None:
        rows = datasets.read_records(layout)
    else:
        rows = [(sample, {}) for sample in datasets.load_layout(layout, root, options)]
    errors = 0
    if check or fix:
        rows, errors = _audited(rows, fix=fix, show=check, as_json=as_json, workers=workers)
    if target is not None:
        datasets.write_manifest(target, [sample for sample, _ in rows], [extra or None for _, extra in rows])
        fakes = sum(sample.label == "fake" for sample, _ in rows)
        note(f"{target}: {fakes} manipulated and {len(rows) - fakes} real samples")
    raise typer.Exit(1 if errors else 0)


def _check_index(layout: str, root: Path | None, out: Path | None, *, check: bool, fix: bool, as_json: bool) -> None:
    """Raise DeclipError where the arguments of `index` contradict each other."""
    manifest = layout.endswith(".jsonl")
    if as_json and not check:
        raise DeclipError("--json prints what --check finds; add --check")
    if manifest and root is not None:
        raise DeclipError(f"{layout} is a manifest; expected nothing after it, got {root}")
    if manifest and not (check or fix):
        raise DeclipError(f"{layout} is a manifest; add --check, --fix, or both")
    if manifest and out is not None and not fix:
        raise DeclipError("--out says where --fix writes; add --fix")
    if not manifest and root is None:
        raise DeclipError(f"{layout} needs the data set's folder: declip index {layout} ROOT --out samples.jsonl")
    if not manifest and out is None and (fix or not check):
        raise DeclipError("--out is missing: the manifest to write, samples.jsonl")


def _audited(
    rows: list[tuple[Sample, dict[str, Any]]], *, fix: bool, show: bool, as_json: bool, workers: int
) -> tuple[list[tuple[Sample, dict[str, Any]]], int]:
    """Print what is wrong with samples. Return them, if fix without the broken ones, and how many errors they have."""
    from declip.datasets import audit

    progress = sys.stderr.isatty()
    report = audit.check([sample for sample, _ in rows], workers=workers, progress=progress)
    if show and as_json:
        print(report.to_json(), flush=True)
    elif show:
        audit.render(report, console())
    broken = audit.broken(report) if fix else {}
    if not broken:
        return rows, report.errors
    for i, why in sorted(broken.items()):
        (note if as_json else line)(f"{rows[i][0].image} is left out: {why}")
    kept = [row for i, row in enumerate(rows) if i not in broken]
    left = audit.check([sample for sample, _ in kept], workers=workers, progress=progress).errors
    if left:
        note(f"errors that are left, which --fix cannot mend: {left}; --check shows them")
    return kept, left


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Recipe file, such as those in recipes/.")],
    data: Annotated[list[Path], typer.Option("--data", help="Manifest with the splits train and valid; repeatable.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write the run to.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that stopped.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the frozen features, which several runs can share.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Start from the decoder in this checkpoint.")] = None,
    only_features: Annotated[
        bool, typer.Option("--only-features", help="Compute the features, store them in the cache, and stop.")
    ] = False,
) -> None:
    """Train a model as a recipe file describes it.

    Example: declip train recipes/vit-l14-conv20.toml --data samples.jsonl --out run
    """
    if out is None and not only_features:
        raise typer.BadParameter("the folder of the run is missing: --out FOLDER")
    from declip import datasets, training

    config = training.TrainConfig.from_toml(recipe, changes or [])
    samples = [sample for manifest in data for sample in datasets.read_manifest(manifest)]
    parts = {split: [s for s in samples if s.split == split] for split in ("train", "valid")}
    if out is None or only_features:
        count = training.fill_features(config, train=parts["train"], valid=parts["valid"], cache=cache)
        line(f"the features of {count} views are in the cache")
        return
    run = training.train(
        config, train=parts["train"], valid=parts["valid"], out=out, resume=resume, cache=cache, start=start
    )
    line(str(run.best))


def convert(
    official: Annotated[
        Path,
        typer.Argument(
            metavar="OFFICIAL.pth", help="Official checkpoint of DeCLIP or a compared method; for PSCC-Net, a folder."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to write.")],
    tower: Annotated[
        Literal["vit", "rn50", "fusion"] | None,
        typer.Option(help="DeCLIP: the backbone, if the file does not tell which."),
    ] = None,
    fake_class: Annotated[
        int | None, typer.Option(min=0, max=1, help="Patch Forensics: the class that means manipulated. Default: 0.")
    ] = None,
    force: Force = False,
) -> None:
    """Convert a checkpoint from the authors of DeCLIP, or of a compared method, into a .safetensors file.

    Example: declip convert fusion.pth --out fusion.safetensors
    """
    check_free(out, force)
    from declip.models.official import convert as convert_official

    chosen = cast("Literal[0, 1] | None", fake_class)
    spec = convert_official(official, out, tower=tower, fake_class=chosen)
    kind = spec.architecture if spec.decoder is None else spec.decoder.kind
    backbones = " + ".join(f"{b.name} layer {b.layer}" for b in spec.backbones)
    line(f"{out}: {backbones}, {kind}" if backbones else f"{out}: {kind}")


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name from `declip models`, or a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="The .onnx file to write.")],
    offline: Offline = False,
    force: Force = False,
) -> None:
    """Export a model to ONNX, and keep the file only if it gives the same results as torch.

    Example: declip export run/best.safetensors --out mine.onnx
    """
    check_free(out, force)
    from declip.models import official, resolve
    from declip.models.export import to_onnx

    source = resolve.resolve(model, offline=offline)
    if source.suffix == ".pth":
        official.convert(source, source.with_suffix(".safetensors"))
        source = source.with_suffix(".safetensors")
    line(str(to_onnx(source, out)))


def batch(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder or URI of photos, or a list of photos (.jsonl, .txt, .parquet)."),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder or URI for the Parquet files.")],
    model: Model = "mini",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the job in --out, if there is one.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster. Without it, the job runs on this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Largest number of worker processes.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each worker process. Default: all cores are used.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Compute on the CPU, or on one GPU per worker.")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Number of files in one part. An interrupted part is computed again.")
    ] = None,
    tile: Tile = None,
    threshold: Threshold = None,
    precision: Precise = "exact",
    max_megapixels: MaxPixels = 250,
    max_megabytes: MaxBytes = 200,
    offline: Offline = False,
) -> None:
    """Localize any number of photos with several workers, here or on a Ray cluster, and write Parquet files.

    Example: declip batch photos/ --out results --resume
    """
    from declip import batch as job

    summary = job.run(
        source,
        out,
        model=model,
        mode=mode_of(tile),
        threshold=threshold,
        precision=precision,
        resume=resume,
        address=address,
        workers=workers,
        threads=threads,
        device=device,
        shard_size=shard_size,
        offline=offline,
        max_pixels=millions(max_megapixels),
        max_bytes=millions(max_megabytes),
        progress=sys.stderr.isatty(),
    )
    line(str(summary))
    raise typer.Exit(1 if summary.errors else 0)
