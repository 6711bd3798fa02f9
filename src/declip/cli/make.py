"""Verbs that make: synthesize, train, convert, export, batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from declip.cli import options
from declip.cli.terminal import line

__all__ = ["batch", "convert", "export", "synthesize", "train"]


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
    force: options.Force = False,
) -> None:
    """Convert a checkpoint from the authors of DeCLIP, or of a compared method, into a .safetensors file.

    Example: declip convert fusion.pth --out fusion.safetensors
    """
    options.check_free(out, force)
    from declip.models.official import convert as convert_official

    chosen = cast("Literal[0, 1] | None", fake_class)
    spec = convert_official(official, out, tower=tower, fake_class=chosen)
    kind = spec.architecture if spec.decoder is None else spec.decoder.kind
    backbones = " + ".join(f"{b.name} layer {b.layer}" for b in spec.backbones)
    line(f"{out}: {backbones}, {kind}" if backbones else f"{out}: {kind}")


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name from `declip models`, or a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="The .onnx file to write.")],
    offline: options.Offline = False,
    force: options.Force = False,
) -> None:
    """Export a model to ONNX, and keep the file only if it gives the same results as torch.

    Example: declip export run/best.safetensors --out mine.onnx
    """
    options.check_free(out, force)
    from declip.engines import model_file
    from declip.models.export import to_onnx

    line(str(to_onnx(model_file(model, offline=offline), out)))


def batch(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder or URI of photos, or a list of photos (.jsonl, .txt, .parquet)."),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder or URI for the Parquet files.")],
    model: options.Model = "mini",
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
    tile: options.Tile = False,
    whole: options.Whole = False,
    threshold: options.Threshold = None,
    precision: options.Precise = "exact",
    clues: options.Clues = True,
    max_megapixels: options.MaxPixels = 250,
    max_megabytes: options.MaxBytes = 200,
    offline: options.Offline = False,
) -> None:
    """Localize any number of photos with several workers, here or on a Ray cluster, and write Parquet files.

    Example: declip batch photos/ --out results --resume
    """
    from declip import batch as job

    summary = job.run(
        source,
        out,
        model=model,
        mode=options.mode_of(tile, whole),
        threshold=threshold,
        precision=precision,
        clues=clues,
        resume=resume,
        address=address,
        workers=workers,
        threads=threads,
        device=device,
        shard_size=shard_size,
        offline=offline,
        max_pixels=options.millions(max_megapixels),
        max_bytes=options.millions(max_megabytes),
        progress=sys.stderr.isatty(),
    )
    line(str(summary))
    raise typer.Exit(1 if summary.errors else 0)
