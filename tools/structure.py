"""Measure the structure of the code, and fail where it gets worse.

    python tools/structure.py            print the figures
    python tools/structure.py --check    exit 1 if one is above its limit in LIMITS
    python tools/structure.py --arrows   print which room imports which
    python tools/structure.py --trace    localize one photo; print the functions that it goes through

A room is a module or package of src/declip, tools/ or bench/. An arrow is an import from one room to another, wherever
it stands in the file. A room is one floor above the highest room that it imports. Rooms that import each other in a
circle share a floor, and the arrows between them count as running up. A comparison with an architecture's name stands
where code asks which network it has instead of reading a trait (`spec.ARCHITECTURES`).
"""

from __future__ import annotations

import argparse
import ast
import functools
import itertools
import subprocess
import sys
import tempfile
import threading
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import get_args

from declip.spec import Architecture

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "declip"
# What was reached. Lower a limit when a figure gets better; only a new feature may raise those of lines.
LIMITS = {
    "lines of src": 30_100,
    "lines of tools and bench": 5_050,
    "lines of tests": 26_650,
    "rooms": 27,
    "floors": 12,
    "arrows": 169,
    "arrows up": 0,
    "files of src over 300 lines": 5,
    "files of src over 400 lines": 0,
    "functions with over 5 arguments": 33,
    "functions of complexity over 10": 3,
    "comparisons with an architecture's name": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the structure of the code.")
    parser.add_argument("--check", action="store_true", help="exit 1 if a figure is above its limit")
    parser.add_argument("--arrows", action="store_true", help="print which room imports which")
    parser.add_argument("--trace", action="store_true", help="print the functions that one photo goes through")
    arguments = parser.parse_args()
    if arguments.trace:
        steps = trace()
        for step in dict.fromkeys(steps):
            print(step)
        moves = sum(a.partition(":")[0] != b.partition(":")[0] for a, b in itertools.pairwise(steps))
        print(f"{len(set(steps))} functions, {moves} moves between files")
        return
    if arguments.arrows:
        for room, imported in sorted(arrows().items()):
            print(f"{floors()[room]:2}  {room:14} → {' '.join(sorted(imported))}")
        return
    found = figures()
    for name, value in found.items():
        print(f"{name:42} {value:7,}   limit {LIMITS[name]:,}")
    worse = [name for name, value in found.items() if value > LIMITS[name]]
    if arguments.check and worse:
        sys.exit(f"worse than before: {', '.join(worse)}. Make it simpler, rather than raising LIMITS in {__file__}.")


def figures() -> dict[str, int]:
    """Return the figures by name, as LIMITS has them."""
    lengths = [_lines(path) for path in files("src")]
    drawn = [(a, b) for a, imported in arrows().items() for b in imported]
    return {
        "lines of src": sum(lengths),
        "lines of tools and bench": sum(map(_lines, files("tools", "bench"))),
        "lines of tests": sum(map(_lines, files("tests"))),
        "rooms": len(arrows()),
        "floors": max(floors().values()),
        "arrows": len(drawn),
        "arrows up": sum(floors()[a] <= floors()[b] for a, b in drawn),
        "files of src over 300 lines": sum(length > 300 for length in lengths),
        "files of src over 400 lines": sum(length > 400 for length in lengths),
        "functions with over 5 arguments": _ruff("PLR0913"),
        "functions of complexity over 10": _ruff("C901"),
        "comparisons with an architecture's name": sum(map(comparisons, files("src", "tools", "bench"))),
    }


def files(*folders: str) -> list[Path]:
    """Return the Python files below folders of the repository."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Return for each room which others it imports."""
    found: dict[str, set[str]] = {}
    for path in files("src", "tools", "bench"):
        room = _room(path)
        if room is not None:
            found.setdefault(room, set())
            found[room] |= {name for name in _imported(path) if name != room}
    return {room: imported & set(found) for room, imported in found.items()}


@functools.cache
def floors() -> dict[str, int]:
    """Return the floor of each room, from 1; rooms of a circle share one."""
    merged = {room: frozenset([room]) for room in arrows()}
    while True:
        graph: dict[frozenset[str], set[frozenset[str]]] = {group: set() for group in merged.values()}
        for room, imported in arrows().items():
            graph[merged[room]] |= {merged[other] for other in imported} - {merged[room]}
        try:
            order = list(TopologicalSorter(graph).static_order())
            break
        except CycleError as error:
            group = frozenset().union(*error.args[1])
            merged |= dict.fromkeys(group, group)
    floor: dict[frozenset[str], int] = {}
    for group in order:
        floor[group] = 1 + max((floor[below] for below in graph[group]), default=0)
    return {room: floor[group] for room, group in merged.items()}


def comparisons(path: Path) -> int:
    """Count the comparisons with an architecture's name in a file; those of nn/ and of its own description are fine."""
    if SOURCE / "nn" in path.parents or SOURCE / "spec" in path.parents:
        return 0
    names = set(get_args(Architecture)) - {"declip"}  # "declip" is the package's name, too
    count = 0
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare | ast.match_case):
            told = node if isinstance(node, ast.Compare) else node.pattern
            count += any(isinstance(one, ast.Constant) and one.value in names for one in ast.walk(told))
    return count


def trace() -> list[str]:
    """Localize one example photo as `declip localize` does; return the functions entered, as FILE:NAME, in order.

    Imports and the opening of the model come before; what threads do is in it. Comprehensions and properties of a line
    are left out with all that is entered again: a function counts where it is entered after another one.
    """
    import declip
    from declip.localize.folder import find_pictures, localize_files

    photo = ROOT / "examples" / "photos" / "astronaut-navier-stokes.jpg"
    localizer = declip.load()
    steps: list[str] = []

    def enter(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_qualname.replace("<locals>.", "")
        path = Path(frame.f_code.co_filename)
        if event == "call" and SOURCE in path.parents and "<" not in name:
            step = f"{path.relative_to(SOURCE)}:{name}"
            if not steps or steps[-1] != step:
                steps.append(step)

    with tempfile.TemporaryDirectory() as folder:
        pairs, _ = find_pictures([photo])
        list(localize_files(localizer, pairs, Path(folder) / "first"))  # what is imported when it is first needed
        threading.setprofile_all_threads(enter) if sys.version_info >= (3, 12) else threading.setprofile(enter)
        sys.setprofile(enter)
        pairs, _ = find_pictures([photo])
        list(localize_files(localizer, pairs, Path(folder) / "second"))
        sys.setprofile(None)
        threading.setprofile(None)
    return steps


def _room(path: Path) -> str | None:
    if SOURCE not in path.parents:
        return path.relative_to(ROOT).parts[0]
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return None if first.startswith("__") else first


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module="declip", names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=str(module)) if module.startswith("declip."):
                found.add(module.split(".")[1])
            case ast.Import(names=names):
                found |= {name.name.split(".")[1] for name in names if name.name.startswith("declip.")}
    return found


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _ruff(rule: str) -> int:
    """Count what ruff finds in src by one rule."""
    command = [sys.executable, "-m", "ruff", "check", str(SOURCE), "--select", rule, "--output-format", "concise"]
    found = subprocess.run([*command, "--ignore-noqa"], capture_output=True, text=True, check=False, cwd=ROOT)
    return sum(f" {rule} " in line for line in found.stdout.splitlines())


if __name__ == "__main__":
    main()
