"""Photos, and a training that takes no time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from declip.models import checkpoint
from declip.nn.model import DeclipNet, build_network
from declip.results import Sample
from declip.training import Run, TrainConfig
from tests.tiny import randomise


def make_photos(folder: Path, count: int, side: int = 64) -> list[Path]:
    """Noise on soft shapes: enough for every manipulation to be visible."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        rng = np.random.default_rng(i)
        soft = ndimage.gaussian_filter(rng.standard_normal((side, side, 3)), (6, 6, 0)) * 600
        pixels = (128 + soft + 12 * rng.standard_normal((side, side, 3))).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"photo-{i:02d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


class FakeTraining:
    """Stands for `training.train`: random weights, by the recipe and the data; remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, config: TrainConfig, *, train: Sequence[Sample], valid: Sequence[Sample], out: Path, **options: Any
    ) -> Run:
        self.calls.append({"config": config, "train": list(train), "valid": list(valid), "out": out, **options})
        net = build_network(config.model)
        randomise(net.decoder if isinstance(net, DeclipNet) else net, seed=len(train))
        checkpoint.save(net, config.model, out / "best.safetensors")
        torch.save({}, out / "state.pt")
        (out / "config.json").write_text(json.dumps({}))
        return Run(best=out / "best.safetensors", last=out / "state.pt", epoch=1, iou=0.5, ap=0.5)
