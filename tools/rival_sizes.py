"""The rivals' shapes, parameters and cost, measured, as a section of docs/models.md: prints it, or with --write puts it
there. `make model-card` writes it with the rest of the page.

Nothing is computed: the networks run on torch's device "meta", and its FlopCounterMode counts.

Needs `pip install 'declip[torch]'`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from declip.nn.rivals.cat_net import CatNet
from declip.nn.rivals.pscc_net import PsccNet, PsccOutput
from declip.nn.rivals.xception import GradCam, PatchForensics

__all__ = ["Row", "measure", "millions", "networks", "parameters", "section"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
PLACE = re.compile(r"(?<=<!-- rivals -->\n).*?(?=<!-- /rivals -->)", re.DOTALL)
# What the authors state, in millions of parameters; nothing where no number of theirs is known.
PUBLISHED = {"PSCC-Net": "2.03 (FENet) + 0.72 (SegNet) + 0.92 (ClsNet)", "CAT-Net v2": "114.26"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One network at its published input: parameters; multiply–accumulates of one picture; input and output shapes."""

    name: str
    parameters: int
    macs: int
    takes: str
    gives: str


def networks() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """All rivals and one picture for each, without contents, in the order of the page."""
    with torch.device("meta"):
        photo = (torch.empty(1, 3, 299, 299),)
        tile = (torch.empty(1, 3, 512, 512), torch.empty(1, 512, 512), torch.empty(1, 8, 8))
        return {
            **{f"Patch Forensics, block {block}": (PatchForensics(block), photo) for block in range(1, 6)},
            "Grad-CAM": (GradCam(), photo),
            "PSCC-Net": (PsccNet(), (torch.empty(1, 3, 256, 256),)),
            "CAT-Net v2": (CatNet(), tile),
        }


def parameters(net: nn.Module) -> int:
    """What is learnt; BatchNorm's statistics are not."""
    return sum(p.numel() for p in net.parameters())


def measure() -> list[Row]:
    """Every network, run once."""
    return [_measure(name, net, inputs) for name, (net, inputs) in networks().items()]


def section(rows: list[Row]) -> str:
    """Markdown: heading, what was done, table."""
    lines = [
        "## The rivals",
        "",
        "DeCLIP is compared with these networks ([rivals.md](rivals.md)). `tools/rival_sizes.py` measures them for",
        "one picture of the size that their authors use. One multiplication and addition is one MAC. Published is",
        "the number that their authors state, if it is known.",
        "",
        "| network | in | out | parameters, M | published, M | GMAC |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.takes, row.gives, millions(row.parameters), PUBLISHED.get(row.name, "–"), f"{row.macs / 1e9:.3g}")
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _measure(name: str, net: nn.Module, inputs: tuple[Tensor, ...]) -> Row:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found = net.eval()(*inputs)
    outputs = (*found.masks, found.image) if isinstance(found, PsccOutput) else (found,)
    return Row(
        name=name,
        parameters=parameters(net),
        macs=counter.get_total_flops() // 2,  # a multiplication and an addition are two operations
        takes=" + ".join(_shape(value) for value in inputs),
        gives=" + ".join(_shape(value) for value in outputs),
    )


def _shape(value: Tensor) -> str:
    """Without the batch: 3×299×299."""
    return "×".join(map(str, value.shape[1:]))


def millions(count: int) -> str:
    """As the table has it: three places below one million, else two."""
    return f"{count / 1e6:.3f}" if count < 1_000_000 else f"{count / 1e6:.2f}"


def main() -> None:
    """Print the section; --write replaces the one in docs/models.md."""
    text = section(measure())
    if sys.argv[1:] == ["--write"]:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(PLACE.sub(lambda _: text, page), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
