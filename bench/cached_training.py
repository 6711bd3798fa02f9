"""Time of a training epoch with frozen features from the cache against running the backbone, side by side.

    python bench/cached_training.py --images 8 --batch-size 4

The network is the paper's: ViT-L/14 up to block 20 (random weights, the time is the same) and each decoder. Both go
through the loop of `declip train`, on pictures of noise; decoding them, reading the cache, decoder and optimizer are
all in the time. Prints one line of JSON per decoder: seconds of each epoch, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from declip.images.mapfiles import write_mask
from declip.nn.backbones import build_backbones, probe
from declip.nn.decoders import build_decoder
from declip.nn.model import DeclipNet
from declip.results import Sample
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training.features import CachedViews
from declip.training.training import FreshViews, TrainConfig, _Loop, _State
from declip.training.views import Views

VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224", layer=20)
DECODERS = ("linear", "conv-4", "conv-20")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2, help="epochs of each kind, in turn; one more is not counted")
    parser.add_argument("--decoders", nargs="+", default=DECODERS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(Path(folder), arguments.images, arguments.batch_size, arguments.repeats, arguments.decoders):
            print(json.dumps(row), flush=True)


def measure(folder: Path, images: int, batch_size: int, repeats: int, decoders: list[str]) -> list[dict[str, object]]:
    """One row per decoder."""
    samples = [make_sample(folder, number) for number in range(images)]
    spec = ModelSpec(backbones=(VIT,), decoder=DecoderSpec(kind="linear"))
    backbones = build_backbones(spec.backbones, input_size=spec.input_size, std=spec.std)
    rows = []
    for kind in decoders:
        spec = ModelSpec(backbones=(VIT,), decoder=DecoderSpec(kind=kind))
        config = TrainConfig(model=spec, batch_size=batch_size)
        decoder = build_decoder(spec.decoder, probe(backbones, spec.input_size), spec.output_size)
        net = DeclipNet(backbones, decoder).to(memory_format=torch.channels_last)
        views = Views(samples, spec)
        cached = CachedViews(net, spec, views, folder / "cache")
        cached.fill(cached.missing(), batch_size=batch_size)
        accelerator = Accelerator(cpu=True)
        loops = {
            name: _Loop(config, net, _State(config, net), data, cached, accelerator)
            for name, data in (("uncached", FreshViews(views)), ("cached", cached))
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(repeats + 1):
            for name, loop in loops.items():
                start = time.perf_counter()
                loop.epoch(folder / "state.pt")
                loop.state.close_epoch(0.0)
                if turn:
                    seconds[name].append(round(time.perf_counter() - start, 3))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rows.append({"decoder": kind, **seconds, "ratio": round(medians["uncached"] / medians["cached"], 2)})
    return rows


def make_sample(folder: Path, number: int) -> Sample:
    """A picture of noise with a mask, 256×256 as in Dolos."""
    rng = np.random.default_rng(number)
    picture, mask = folder / f"{number}.png", folder / f"{number}-mask.png"
    Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(picture)
    write_mask(mask, rng.random((256, 256)) < 0.3)
    return Sample(image=picture, mask=mask, label="fake")


if __name__ == "__main__":
    main()
