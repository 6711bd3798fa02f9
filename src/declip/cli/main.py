"""The command `declip`: a verb parses its arguments and calls the library; nothing else lives here.

stdout carries results, stderr the log and progress bars. Exit 0: all went well; 1: some images failed, all others
are written; 2: wrong usage, a missing path, or a DeclipError before any image; 130: Ctrl-C. Imports stand inside the
verbs: `declip --help` loads no NumPy, and `declip localize` with an .onnx model no torch.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import Annotated

import typer

from declip._version import __version__
from declip.cli import look, make, measure
from declip.cli.compare import compare
from declip.cli.edits import detectability
from declip.cli.index import index
from declip.cli.terminal import line, note
from declip.cli.verify import verify
from declip.errors import DeclipError, MissingExtraError
from declip.files import local_path

__all__ = ["app", "main"]

app = typer.Typer(
    name="declip",
    help="Show where a photograph has been manipulated. Start with: declip localize photo.jpg --out maps",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    *(
        look.localize,
        look.report,
        verify,
        detectability,
        compare,
        make.batch,
        measure.evaluate,
        measure.calibrate,
        look.models,
        make.synthesize,
    ),
    *(make.convert, make.export, index, make.train, measure.reproduce, look.serve),
):
    app.command()(verb)


def main() -> None:
    """Entry point: run the app; declip's own errors and the system's become one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks (Windows' cp1252, say) is escaped
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="declip: %(message)s", level=logging.WARNING)
    logging.getLogger("declip").setLevel(logging.INFO)
    try:
        sys.argv[1:] = map(_argument, sys.argv[1:])  # in place: of sys.argv alone click expands Windows' *.jpg
        app()
    except DeclipError as error:
        note(str(error))
        sys.exit(2)
    except OSError as error:
        note(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        sys.exit(2)
    except ModuleNotFoundError as error:
        missing = MissingExtraError.behind(error)
        if missing is None:
            raise
        note(str(missing))
        sys.exit(2)


def _argument(text: str) -> str:
    """Return an argument, or the value in --option=value, as a path if it is a file: URI."""
    option, sign, value = text.partition("=")
    if sign and option.startswith("--"):
        return f"{option}={local_path(value)}"
    return local_path(text)


def _print_version(wanted: bool) -> None:
    if wanted:
        line(f"declip {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass  # the callback has done what there is to do
