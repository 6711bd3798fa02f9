"""A backbone and a decoder of your own: trained, evaluated, exported, used. `declip train` takes their names, too."""

import tempfile
from pathlib import Path

from torch import Tensor, nn

import declip
from declip.models.export import to_onnx
from declip.nn.maps import Features, FeatureShape

HERE = Path(__file__).parent


class Patches(nn.Conv2d):
    """Normalised pictures (N, 3, S, S) → Features: here one map (N, 32, S/8, S/8). It is frozen."""

    def __init__(self, input_size: int) -> None:
        super().__init__(3, 32, kernel_size=8, stride=8)

    def forward(self, images: Tensor) -> Features:
        return Features((super().forward(images),))


class Pointwise(nn.Conv2d):
    """Features → logits (N, T, T). It learns."""

    def __init__(self, shape: FeatureShape, output_size: int) -> None:
        super().__init__(sum(shape.channels), 1, kernel_size=1)
        self.size = (output_size, output_size)

    def forward(self, features: Features) -> Tensor:
        return nn.functional.interpolate(super().forward(features.fused()), self.size, mode="bilinear")[:, 0]


if __name__ == "__main__":
    parts = {"backbones": (declip.BackboneSpec(name="own_parts:Patches", layer=0),)}
    model = declip.ModelSpec(**parts, decoder=declip.DecoderSpec(kind="own_parts:Pointwise"), output_size=56)
    masks = sorted((HERE / "masks").glob("*.png"))
    photos = [next((HERE / "photos").glob(f"{mask.stem}.*")) for mask in masks]
    samples = [declip.Sample(image=p, mask=m, label="fake") for p, m in zip(photos, masks, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        config = declip.training.TrainConfig(model=model, epochs=2)
        tracked = []  # a tracker of your own takes its place: it is given a dictionary after each epoch
        data = {"train": samples, "valid": samples, "out": Path(folder) / "run", "cache": folder}
        run = declip.training.train(config, **data, on_epoch=tracked.append)
        found = declip.evaluate(declip.load(run.best), samples)
        exported = to_onnx(run.best, Path(folder) / "own.onnx")
        print(len(tracked), "epochs tracked,", len(found.rows), "evaluated")
        print(declip.load(exported)(photos[0]).scores.shape, "scores")
