"""Verbs that look at photos: localize, report, serve, models."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from declip.cli import options
from declip.cli.terminal import console, note, print_row, with_bar
from declip.errors import DeclipError, ImageError

if TYPE_CHECKING:
    from declip.report.signing import Signer

__all__ = ["localize", "models", "report", "serve"]


def localize(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Photos to examine, or folders of photos.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write the maps to. File names start with the name of the photo.")
    ],
    model: options.Model = "mini",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each photo.")] = False,
    tile: options.Tile = False,
    whole: options.Whole = False,
    threshold: options.Threshold = None,
    precision: options.Precise = "exact",
    clues: options.Clues = True,
    batch_size: options.BatchSize = 8,
    max_megapixels: options.MaxPixels = 250,
    max_megabytes: options.MaxBytes = 200,
    pages: Annotated[
        Literal["first", "all"], typer.Option(help="Examine the first page of a file with several, or all.")
    ] = "first",
    offline: options.Offline = False,
    force: options.Force = False,
) -> None:
    """Show where photos have been manipulated: write scores, mask and overlay of each photo, and print its verdict.

    Example: declip localize photo.jpg folder/ --out maps
    """
    from declip.localize.folder import find_pictures, localize_files
    from declip.localize.localizer import load

    pairs, skipped = find_pictures(paths)
    localizer = load(
        model,
        mode=options.mode_of(tile, whole),
        threshold=threshold,
        precision=precision,
        clues=clues,
        offline=offline,
        max_pixels=options.millions(max_megapixels),
        max_bytes=options.millions(max_megabytes),
    )
    rows = localize_files(localizer, pairs, out, force=force, batch_size=batch_size, pages=pages)
    done = [print_row(row, as_json) for row in with_bar(rows, len(pairs))]
    failed = sum(done)
    note(f"{len(done) - failed} localized to {out}, {failed} failed, {skipped} skipped")
    raise typer.Exit(1 if failed else 0)


def report(
    photo: Annotated[Path, typer.Argument(metavar="IMAGE", help="The photo to examine.")],
    out: Annotated[Path, typer.Option("--out", help="The .html file to write.")],
    model: options.Model = "mini",
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts of the page as one line of JSON.")] = False,
    gps: Annotated[
        bool, typer.Option("--gps", help="Also show where the photo was taken, and free text from the file.")
    ] = False,
    edits: Annotated[
        bool | None,
        typer.Option(
            "--detectability/--no-detectability",
            help="Also test which edits would have been found in this file. Default: if nothing is found in a photo of "
            "up to 3 megapixels.",
        ),
    ] = None,
    tile: options.Tile = False,
    whole: options.Whole = False,
    threshold: options.Threshold = None,
    clues: options.Clues = True,
    max_megapixels: options.MaxPixels = 250,
    max_megabytes: options.MaxBytes = 200,
    offline: options.Offline = False,
    force: options.Force = False,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the report with this private key (Ed25519, PEM).")
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(metavar="URL", help="Have the signature time-stamped by this authority (RFC 3161).")
    ] = None,
) -> None:
    """Write a report on one photo: an HTML page with verdict, map, stability, second opinions, metadata and limits.

    Example: declip report photo.jpg --out report.html
    """
    if timestamp is not None and (sign is None or offline):
        raise DeclipError("--timestamp asks an authority to confirm a signature: add --sign, and leave out --offline")
    options.check_free(out, force)
    signer = None if sign is None else _signer(sign, out, force)
    from datetime import UTC, datetime

    from declip import report as page
    from declip.localize.localizer import load
    from declip.report.detectability import for_report

    localizer = load(
        model,
        mode=options.mode_of(tile, whole),
        threshold=threshold,
        clues=clues,
        offline=offline,
        max_pixels=options.millions(max_megapixels),
        max_bytes=options.millions(max_megabytes),
    )
    try:
        found = page.examine(photo, localizer, date=datetime.now(UTC), position=gps)
        tested = for_report(localizer, found.photo, found.result, edits)
    except (ImageError, MemoryError) as error:
        failure = error if isinstance(error, ImageError) else ImageError.out_of_memory(str(photo))
        print_row({"image": str(photo), "error": str(failure), "kind": failure.kind}, as_json)
        raise typer.Exit(1) from error
    found = dataclasses.replace(found, detectability=tested)
    if signer is None:
        found.save(out, force=force)
    else:
        from declip.report.signing import save

        save(found, out, signer, force=force, authority=timestamp)
        note(f"signed; SHA-256 fingerprint of the key: {signer.fingerprint}")
    print_row(found.to_dict(), as_json)
    note(f"the page is in {out}")


def _signer(key: Path, out: Path, force: bool) -> Signer:
    """Return the key, before a report is made in vain. Its passphrase comes from the environment or the terminal."""
    from declip.report.signing import paths_of, read_signer

    def ask() -> str | None:
        if given := os.environ.get("DECLIP_KEY_PASSPHRASE"):
            return given
        if not sys.stdin.isatty():
            raise DeclipError(f"{key} is encrypted: set DECLIP_KEY_PASSPHRASE, or run this in a terminal")
        return str(typer.prompt(f"Passphrase of {key}", hide_input=True, err=True))

    for path in paths_of(out):
        options.check_free(path, force)
    return read_signer(key, ask)


def serve(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model to serve; repeatable, the first one is the default. Default: mini."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0 means all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0 chooses a free port.")] = 8000,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of photos computed at once. They share the processor cores.")
    ] = 1,
    keep: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep every photo and its maps here. Default: keep nothing.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Host name that requests may use; repeatable. Default: this machine's, or any."
        ),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS", help="Trust X-Forwarded-For from this proxy, as 127.0.0.1 or 10.0.0.0/8; repeatable."
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let everybody who can reach the service use it.")
    ] = False,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Log each request as one line of JSON on stderr.")
    ] = True,
    max_megabytes: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Refuse requests with more megabytes.")
    ] = 200,
    max_megapixels: Annotated[
        float, typer.Option(min=0.0001, max=1e6, help="Refuse photos with more megapixels.")
    ] = 100,
    max_files: Annotated[int, typer.Option(min=1, help="Refuse requests with more files.")] = 16,
    max_memory: Annotated[
        float, typer.Option(min=1, help="Most megabytes of uploads and answers held in memory at once.")
    ] = 1000,
    requests: Annotated[int, typer.Option(min=1, help="Most requests in progress at once.")] = 64,
    client_requests: Annotated[
        int, typer.Option(min=1, help="Most requests in progress at once from one address.")
    ] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Most photos that may wait.")] = 128,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a request is given up.")] = 120,
    precision: options.Precise = "exact",
    clues: options.Clues = True,
    batch_size: options.BatchSize = 8,
    offline: options.Offline = False,
) -> None:
    """Serve models over HTTP, with a page for the browser.

    If the environment variable DECLIP_TOKEN is set, requests must carry it as a bearer token. To listen on an address
    that others can reach, set it first.

    Example: declip serve --port 8000
    """
    from declip import serve
    from declip.localize.localizer import load

    limits = serve.Limits(
        request_bytes=options.millions(max_megabytes),
        pixels=options.millions(max_megapixels),
        files=max_files,
        held_bytes=options.millions(max_memory),
        requests=requests,
        client_requests=client_requests,
        queue=queue,
        seconds=timeout,
        batch_size=batch_size,
    )
    token = os.environ.get("DECLIP_TOKEN")
    local = host in serve.LOOPBACK
    if token and no_token:
        raise DeclipError("there are both a DECLIP_TOKEN and --no-token: unset the one, or leave out the other")
    if no_token:
        token = None
    elif token is None and not local:
        raise DeclipError(
            f"everybody who reaches {host} could use this service: set DECLIP_TOKEN to a long random word, "
            "which requests then carry, or add --no-token"
        )
    hosts = {host, *serve.LOOPBACK, *(allow_host or ())} if local else allow_host
    localizers = [load(name, precision=precision, clues=clues, offline=offline) for name in models or ["mini"]]
    served = serve.create_app(localizers, limits, workers=workers, token=token, hosts=hosts, keep=keep)
    names = ", ".join(localizer.model for localizer in localizers)
    serve.serve(
        served,
        host=host,
        port=port,
        proxies=trust_proxy or (),
        access_log=access_log,
        started=lambda url: note(f"{names} on {url}"),
    )


def models() -> None:
    """List the models, with their licences and sizes, and say which are on this machine.

    Example: declip models
    """
    from rich.table import Column, Table

    from declip.models.catalog import MODELS
    from declip.models.resolve import cached

    whole = [Column(title, no_wrap=True) for title in ("name", "size", "here")]
    table = Table(whole[0], "trained on", "licence", *whole[1:], box=None, pad_edge=False)
    for card in MODELS:
        path = cached(card)
        size = "by hand" if card.by_hand and path is None else _size(card.size_bytes, path)
        table.add_row(card.name, card.trained_on, card.license, size, "yes" if path else "no")
    console().print(table)


def _size(published: int | None, path: Path | None) -> str:
    size = path.stat().st_size if path else published
    return "?" if size is None else f"{size / 1e6:.0f} MB"
