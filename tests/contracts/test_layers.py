"""Who may import whom: the layers of CONTRIBUTING.md, and where torch may be imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "declip"

# A module imports only from the rows above it, and in its own row only from tuples' earlier members. Names that do not
# exist yet keep their places.
ROWS: tuple[tuple[str | tuple[str, ...], ...], ...] = (
    (("errors", "files", "regions", "types", "process"),),
    (
        ("containers", "pages", "damage", "arrays", "image"),
        *("metrics", "catalog", "plots", "paper", "verdicts", "scope"),
    ),
    ("datasets", "weights", "perturbations", "jpeg", ("provenance", "metadata"), "local_ray"),
    (
        (
            "nn.devices",
            "nn.maps",
            "nn.statistics",
            "nn.exported",
            "nn.backbones",
            "nn.decoders",
            "nn.rivals.official",
            "nn.rivals.hrnet",
            "nn.rivals.xception",
            "nn.rivals.patch_forensics",
            "nn.rivals.grad_cam",
            "nn.rivals.pscc_net",
            "nn.rivals.cat_net",
            "nn.rivals.net",
            "nn.rivals.conversion",
            "nn.model",
            "nn.checkpoint",
            "nn.lean",
            "nn.winograd",
        ),
    ),
    (
        (
            "audit.report",
            "audit.stream",
            "audit.facts",
            "audit.twins",
            "audit.repeats",
            "audit.bias",
            "audit.mending",
            "audit.doctor",
        ),
        (
            "synthesis.sources",
            "synthesis.masks",
            "synthesis.saliency",
            "synthesis.classical",
            "synthesis.saving",
            "synthesis.history",
            "synthesis.neural",
            "synthesis.zoo",
            "synthesis.upscalers",
            "synthesis.inpainters",
            "synthesis.forging",
            "synthesis.pipeline",
            "synthesis.lived",
        ),
        ("views", "features"),
        ("probes", "engines"),
        "photo_statistics",
        ("evaluation_report", "evaluation"),
        "baselines",
    ),
    (("localizer", "calibration"),),
    ("training", "export", "report", "outputs"),
    (
        (
            "reproduce.setup",
            "reproduce.sources",
            "reproduce.cells",
            "reproduce.report",
            "reproduce.pairs",
            "reproduce.others",
            "reproduce.rivals",
            "reproduce.runs",
        ),
        (
            "batch.rows",
            "batch.stores",
            "batch.listing",
            "batch.job",
            "batch.attempts",
            "batch.worker",
            "batch.driver",
            "batch.features",
        ),
        (
            "server.problems",
            "server.limits",
            "server.forms",
            "server.monitor",
            "server.guard",
            "server.work",
            "server.desk",
            "server.answers",
            "server.keeping",
            "server.schemas",
            "server.app",
            "server.run",
            "server.ray_serve",
        ),
    ),
    ("cli",),
)
# (row, column, place in its tuple) of every module.
PLACES = {
    name: (row, column, place)
    for row, entries in enumerate(ROWS)
    for column, entry in enumerate(entries)
    for place, name in enumerate((entry,) if isinstance(entry, str) else entry)
}
TORCH = {"torch", "torchvision", "timm", "safetensors", "accelerate"}
TORCH_MODULES = ("nn", "features", "training", "export", "synthesis.neural", "synthesis.zoo")

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
}


def place(name: str) -> tuple[int, int, int]:
    """The place of a module, or of the nearest package around it that has one."""
    while name not in PLACES:
        name, dot, _ = name.rpartition(".")
        assert dot, f"{name} has no layer: give it one here and in CONTRIBUTING.md"
    return PLACES[name]


def may_import(importer: str, imported: str) -> bool:
    row, column, position = place(importer)
    other_row, other_column, other_position = place(imported)
    return other_row < row or ((other_row, other_column) == (row, column) and other_position < position)


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of what is imported anywhere below: "torch.nn", "declip.image"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(names: Iterator[str]) -> Iterator[str]:
    """Of absolute names, declip's modules: "image", "nn.model"; packages as their last module, which they re-export."""
    for name in names:
        module = name.removeprefix("declip.")
        if name == module or module == "__version__":
            continue
        while module not in MODULES and not (PACKAGE / module.replace(".", "/")).is_dir():
            module, dot, _ = module.rpartition(".")
            assert dot, f"{name} is no module of declip"
        yield {
            "audit": "audit.doctor",
            "synthesis": "synthesis.pipeline",
            "nn": "nn.checkpoint",
            "reproduce": "reproduce.runs",
            "batch": "batch.features",
            "server": "server.run",
        }.get(module, module)


def at_import(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: not the bodies of functions, nor what is for type checkers only."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if typing_only else self.generic_visit(node)

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def needs_torch(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in TORCH_MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_above(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    wrong = sorted({name for name in own(imports(tree)) if not may_import(module, name)})
    assert not wrong, f"{module} imports {', '.join(wrong)}"


@pytest.mark.parametrize("module", [name for name in MODULES if not needs_torch(name)])
def test_torch_stays_out_of_the_core(module: str) -> None:
    tree = at_import(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    names = list(imports(tree))
    assert not [name for name in names if name.partition(".")[0] in TORCH]
    assert not [name for name in own(iter(names)) if needs_torch(name)]


def test_the_rules_can_fail() -> None:
    assert may_import("cli", "localizer") and may_import("nn.model", "nn.decoders") and may_import("types", "errors")
    assert not may_import("image", "localizer") and not may_import("nn.decoders", "nn.model")
    assert not may_import("features", "engines") and not may_import("errors", "types")
    tree = ast.parse("from declip import image\nimport torch.nn\ndef f():\n    from declip.nn import model\n")
    assert list(own(imports(tree))) == ["image", "nn.model"]
    assert list(imports(at_import(tree))) == ["declip.image", "torch.nn"]
