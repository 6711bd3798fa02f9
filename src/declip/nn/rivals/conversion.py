"""Official checkpoints of the rivals → networks and their descriptions. Which rival a file is of, its keys say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from declip.errors import WeightsError
from declip.nn.rivals.cat_net import CatNet
from declip.nn.rivals.net import RivalNet
from declip.nn.rivals.patch_forensics import PatchForensics
from declip.nn.rivals.pscc_net import PsccNet
from declip.nn.rivals.xception import XCEPTION
from declip.spec import BackboneSpec, ModelSpec

__all__ = ["FakeClass", "join_pscc_net", "read_rival"]

# Which of the two classes of a Patch Forensics file is the manipulated one: the authors' --fake_class_id, 0 by default.
FakeClass = Literal[0, 1]

HALF = (0.5, 0.5, 0.5)
PATCHES = {1: 74, 2: 37, 3: 19, 4: 19, 5: 19}  # behind each block, of 299 px
# A key that each of PSCC-Net's three files has, and no other of them.
PSCC_PARTS = {"FENet": "stage4.", "SegNet": "getmask1.", "ClsNet": "incre_modules."}


def read_rival(content: Any, source: Path, fake_class: FakeClass = 0) -> tuple[RivalNet, ModelSpec] | None:
    """What an official file holds → the network, in eval mode, and its spec; None where it is no rival's.

    content: a state dict, or a dict with one under "state_dict"; keys may all begin with "module.". fake_class: of
    Patch Forensics, the manipulated one of the file's two classes; nothing in the tensors says which it is.
    Raises WeightsError for tensors that do not fit, and for one of PSCC-Net's three files alone.
    """
    state = _state_dict(content)
    if any(key.startswith("convout.") for key in state):
        return _patch_forensics(state, source, fake_class)
    if any(key.startswith("dc_layer0_dil.") for key in state):
        net = CatNet()
        net.load_official(state, str(source))
        spec = ModelSpec(
            architecture="cat-net", mode="tiled", input_size=512, output_size=128, overlap=64, mean=HALF, std=HALF
        )
        return RivalNet(net).eval(), spec
    for part in _parts(state):
        raise WeightsError(
            f"{source} is {part}, one of PSCC-Net's three files; give the folder that holds {', '.join(PSCC_PARTS)}"
        )
    return None


def join_pscc_net(contents: Mapping[Path, Any], source: Path) -> tuple[RivalNet, ModelSpec]:
    """What the files of a folder hold, by path, among them PSCC-Net's three → the network, in eval mode, and its spec.

    Raises WeightsError where one of the three is missing, there twice, or does not fit.
    """
    states = {path: _state_dict(content) for path, content in contents.items()}
    found = {part: [path for path, state in states.items() if part in _parts(state)] for part in PSCC_PARTS}
    if any(len(paths) != 1 for paths in found.values()):
        counts = ", ".join(f"{len(paths)} of {part}" for part, paths in found.items())
        raise WeightsError(f"{source} holds {counts}; expected one .pth file of each of PSCC-Net's three parts")
    net = PsccNet()
    net.load_official(*(states[path] for (path,) in found.values()))
    spec = ModelSpec(
        architecture="pscc-net", input_size=256, output_size=256, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return RivalNet(net).eval(), spec


def _patch_forensics(state: Mapping[str, Tensor], source: Path, fake_class: FakeClass) -> tuple[RivalNet, ModelSpec]:
    blocks = [int(found[1]) for key in state if (found := re.match(r"block(\d+)\.", key))]
    block = max(blocks, default=0)
    if block not in PATCHES:
        raise WeightsError(f"{source} looks like Patch Forensics, cut behind block {block}; expected 1, 2, 3, 4 or 5")
    net = PatchForensics(block)
    if fake_class == 0:  # here the manipulated class is the second one
        state = {k: v.flip(0) if k.startswith("convout.") else v for k, v in state.items()}
    net.load_official(state, str(source))
    spec = ModelSpec(
        architecture="patch-forensics",
        backbones=(BackboneSpec(name=XCEPTION, layer=block),),
        input_size=299,
        output_size=PATCHES[block],
        mean=HALF,
        std=HALF,
    )
    return RivalNet(net).eval(), spec


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors by name, without the prefix of torch's DataParallel; empty where there is no state dict."""
    inner = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(inner, dict) or not all(isinstance(value, Tensor) for value in inner.values()):
        return {}
    if all(key.startswith("module.") for key in inner):
        return {key.removeprefix("module."): value for key, value in inner.items()}
    return dict(inner)


def _parts(state: Mapping[str, Tensor]) -> list[str]:
    """The part of PSCC-Net that a state dict is of: one name, or none."""
    return [part for part, prefix in PSCC_PARTS.items() if any(key.startswith(prefix) for key in state)]
