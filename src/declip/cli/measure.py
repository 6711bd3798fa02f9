"""Verbs that measure: evaluate, calibrate, reproduce."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from declip.cli import options
from declip.cli.terminal import console, line, print_calibration, print_evaluation
from declip.errors import DeclipError

__all__ = ["calibrate", "evaluate", "reproduce"]

Experiment = Literal[
    "dolos",
    "layers",
    "decoders",
    "backbones",
    "generators",
    "detection",
    "autosplice",
    "robustness",
    "leave-one-out",
    "rivals",
]


def evaluate(
    manifest: Annotated[
        Path, typer.Argument(metavar="SAMPLES.jsonl", help="Manifest of samples with known masks (see declip index).")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write images.csv, summary.json and report.html to.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Model to measure, as for localize. Default: mini.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option("--maps", help="Folder of score maps from another method, to be measured instead of a model."),
    ] = None,
    maps_fake_is: Annotated[
        Literal["white", "black"], typer.Option(help="Colour that means manipulated in --maps.")
    ] = "white",
    split: Annotated[str | None, typer.Option(help="Use only the samples of this split.")] = None,
    tile: options.Tile = False,
    whole: options.Whole = False,
    threshold: options.Threshold = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Lowest image score at which a picture counts as called manipulated."),
    ] = None,
    precision: options.Precise = "exact",
    clues: options.Clues = True,
    batch_size: options.BatchSize = 8,
    max_megapixels: options.MaxPixels = 250,
    max_megabytes: options.MaxBytes = 200,
    offline: options.Offline = False,
    force: options.Force = False,
) -> None:
    """Measure how well a model, or maps from another method, agree with known masks.

    Example: declip evaluate samples.jsonl --out results
    """
    from declip import datasets, evaluation
    from declip.localize.localizer import load

    if maps and (model or tile or whole or precision != "exact"):
        raise DeclipError("--maps scores what is there: it goes with none of --model, --tile/--whole and --precision")
    evaluation.check_free(out, force=force)
    samples = datasets.read_manifest(manifest, split)
    source = (
        evaluation.Maps(maps, [s.image for s in samples], root=manifest.parent, fake_is=maps_fake_is) if maps else None
    )
    result = evaluation.evaluate(
        source
        or load(
            model,
            mode=options.mode_of(tile, whole),
            precision=precision,
            clues=clues,
            offline=offline,
            max_pixels=options.millions(max_megapixels),
            max_bytes=options.millions(max_megabytes),
        ),
        samples,
        threshold=threshold,
        score_threshold=score_threshold,
        batch_size=batch_size,
        title=str(manifest),
        progress=sys.stderr.isatty(),
    )
    result.save(out, force=force)
    raise typer.Exit(print_evaluation(result))


def calibrate(
    photos: Annotated[
        list[Path], typer.Argument(metavar="REAL_PHOTOS", help="Untouched photos of your own, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Model file to write. It needs the same suffix as the model.")],
    model: options.Model = "mini",
    false_alarms: Annotated[
        str, typer.Option(help="Largest shares of untouched photos called manipulated, and inconclusive.")
    ] = "0.01,0.05",
    data: Annotated[
        Path | None, typer.Option("--data", help="Also fit temperature and threshold, on the fakes of this manifest.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Use only the samples of this split.")] = None,
    pieces: Annotated[int, typer.Option(min=0, help="Also compare with up to so many pieces of each large photo.")] = 0,
    saves: Annotated[
        int, typer.Option(min=0, max=5, help="Also compare with copies of each photo, saved again up to so many times.")
    ] = 0,
    tile: options.Tile = False,
    whole: options.Whole = False,
    precision: options.Precise = "exact",
    clues: options.Clues = True,
    batch_size: options.BatchSize = 8,
    max_megapixels: options.MaxPixels = 250,
    max_megabytes: options.MaxBytes = 200,
    offline: options.Offline = False,
    force: options.Force = False,
) -> None:
    """Calibrate a model's verdicts on untouched photos of your own, and write a new model file.

    Example: declip calibrate my-photos/ --out mine.onnx
    """
    from declip import calibration, datasets
    from declip.localize.folder import find_pictures

    if split and not data:
        raise DeclipError("--split chooses among the samples of --data; add --data")
    rates = [_rate(text) for text in false_alarms.split(",")]
    pairs, skipped = find_pictures(photos)
    samples = datasets.read_manifest(data, split) if data else None
    result = calibration.calibrate(
        model,
        [pair.path for pair in pairs],
        out,
        rates=rates,
        samples=samples,
        pieces=pieces,
        saves=saves,
        clues=clues,
        mode=options.mode_of(tile, whole),
        precision=precision,
        batch_size=batch_size,
        offline=offline,
        max_pixels=options.millions(max_megapixels),
        max_bytes=options.millions(max_megabytes),
        force=force,
        progress=sys.stderr.isatty(),
    )
    print_calibration(result, out, skipped)
    raise typer.Exit(1 if result.unreadable or result.lost else 0)


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DeclipError(f"got the false-alarm rate {text!r}; expected a number in (0, 1), as 0.01 for 1 %") from None


def reproduce(
    experiment: Annotated[
        Experiment, typer.Argument(metavar="EXPERIMENT", help=f"One of {', '.join(get_args(Experiment))}.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder of all experiments. Finished steps found there are used again.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="For --scale full: folder that holds celebahq/ (Dolos) and AutoSplice/.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME[:LAYER][+…]", help="Name of a timm model; + joins several. Default: the paper's."),
    ] = None,
    scale: Annotated[
        Literal["full", "tiny"],
        typer.Option(help="full: the paper's data and recipe. tiny: a trial that takes minutes on a CPU."),
    ] = "full",
    photos: Annotated[
        Path | None, typer.Option(help="For --scale tiny: folder of photos from which the data are made.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training. The data stay the same.")] = 0,
) -> None:
    """Repeat an experiment of the paper: train, test, and show the results beside the paper's.

    Example: declip reproduce dolos --scale tiny --photos photos/ --out runs
    """

    from declip import reproduce as experiments
    from declip.localize import folder

    pictures = None if photos is None else [pair.path for pair in folder.find_pictures([photos])[0]]
    found = experiments.reproduce(
        experiment, out, scale=scale, data=data, photos=pictures, backbone=backbone, seed=seed
    )
    console().print(experiments.render(found))
    line(str(out / experiment / "table.md"))
