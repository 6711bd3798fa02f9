"""Measure today's embedded model with statistics of whole photos instead of tiles.

    python tools/photo_statistics.py --data ../shared/data [--quick 4]

Both on the same pictures, by the same rule for masks: forged/dev as is and after JPEG 90 (AP above the masks' share,
IoU), the share of untouched photos with more than 2 % flagged, seams (differences of scores across tiles' borders
against those inside) and what is left of a mask when 144 px are cropped off.

The decoder `dilated` measures every feature against the mean of its own window (`nn.decoders.Projection`). Read in
tiles, each tile has a zero of its own: maps show seams, and change when a photo is cropped. `split` cuts an exported
network in two: the first part gives the means of a tile, the second takes means and gives logits. With the means of all
tiles averaged, every tile is measured against the whole photo. The localizer does not do so: it would need a
calibration of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from card_cases import FLAGGED, published
from numpy.typing import NDArray
from onnx import TensorProto, helper

from declip.engines import Wrapped, open_engine
from declip.errors import SpecError
from declip.evaluation import metrics
from declip.images.read import read_photo
from declip.localize.localizer import Localizer
from declip.results import Localization

ROOT = Path(__file__).resolve().parents[1]
CROP = 144  # px

Inputs = Mapping[str, NDArray[Any]]
Means = tuple[NDArray[np.float32], ...]


def split(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return two networks: pictures → means of their features, and pictures and means → logits.

    model: an export of a network whose decoder is of the kind `dilated`.
    Raises SpecError for another network: one that multiplies no means by weights.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    used = {
        name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
        for name in node.input
    }
    means = [node.output[0] for node in model.graph.node if node.op_type == "ReduceMean" and node.output[0] in used]
    if not means:
        raise SpecError(
            "this network measures nothing against its window's mean; its decoder is not of the kind dilated"
        )
    # Shapes of what is inside are not in the file; batches are of any size, channels are what the weights have.
    widths = {
        node.input[0]: next(t.dims[0] for t in model.graph.initializer if t.name == node.input[1])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[0] in means
    }
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", int(widths[name])]) for name in means]
    return _part(model, [], values), _part(model, values, list(model.graph.output))


def _part(
    model: onnx.ModelProto, given: list[onnx.ValueInfoProto], wanted: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """Return the network that computes `wanted` from the model's inputs and what is given beside them."""
    maker = {name: node for node in model.graph.node for name in node.output}
    needed = {value.name for value in wanted}
    waiting, known = list(needed), {value.name for value in given}
    while waiting:
        name = waiting.pop()
        if name in known or name not in maker:
            continue
        new = set(maker[name].input) - needed
        needed |= new
        waiting += new
    part = onnx.ModelProto()
    part.CopyFrom(model)
    for kept, field in (
        ([node for node in model.graph.node if needed & set(node.output) - known], part.graph.node),
        ([tensor for tensor in model.graph.initializer if tensor.name in needed], part.graph.initializer),
        ([*model.graph.input, *given], part.graph.input),
        (wanted, part.graph.output),
    ):
        del field[:]
        field.extend(kept)
    del part.graph.value_info[:]
    return part


class PhotoStatistics:
    """Both halves of an exported network, on the CPU by ONNX Runtime."""

    def __init__(self, path: str | Path) -> None:
        """path: an .onnx file of declip's. Raises SpecError as `split`."""
        self._first, self._second = (_session(model) for model in split(onnx.load(path)))
        self._names = [value.name for value in self._first.get_outputs()]

    def means(self, inputs: Inputs) -> Means:
        """{"image": (N, 3, S, S) float32 normalised} → for each backbone map its means (N, C) float32."""
        return tuple(self._first.run(self._names, dict(inputs)))

    def logits(self, inputs: Inputs, means: Sequence[NDArray[np.float32]] | None = None) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S)} → (N, T, T) float32 logits.

        means: for each backbone map (C,) float32, of the whole photo; None: those of each input itself, which gives
        what the uncut network gives.
        """
        count = len(next(iter(inputs.values())))
        given = self.means(inputs) if means is None else [np.repeat(mean[None], count, axis=0) for mean in means]
        fed = dict(inputs) | dict(zip(self._names, given, strict=True))
        found: NDArray[np.float32] = self._second.run(None, fed)[0]
        return found


def _session(model: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class TwoPasses(Wrapped):
    """An engine that is asked twice for each photo: first it only measures, then it computes with what it measured."""

    def __init__(self, engine: Any, statistics: PhotoStatistics) -> None:
        super().__init__(engine)
        self.statistics = statistics
        self.found: list[tuple[NDArray[np.float32], ...]] | None = None
        self.means: list[NDArray[np.float32]] = []

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Zeros while it measures, then logits."""
        if self.found is None:
            return self.statistics.logits(inputs, self.means)
        self.found.append(self.statistics.means(inputs))
        size = self.spec.output_size
        return np.zeros((len(inputs["image"]), size, size), np.float32)


def whole(path: Path) -> Callable[[NDArray[np.uint8]], Localization]:
    """Return a function that localizes with statistics of the whole photo."""
    engine = TwoPasses(open_engine(path), PhotoStatistics(path))
    localizer = Localizer(engine)

    def predict(pixels: NDArray[np.uint8]) -> Localization:
        engine.found = []
        localizer(pixels)
        found, engine.found = engine.found, None
        parts = zip(*found, strict=True)
        engine.means = [np.concatenate(part).mean(axis=0, dtype=np.float64).astype(np.float32) for part in parts]
        return localizer(pixels)

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--model", type=Path, default=ROOT / "src/declip/assets/mini.onnx")
    parser.add_argument("--quick", type=int, help="only so many pictures of each set")
    parser.add_argument("--large", type=int, default=16, help="large untouched photos for seams and crops")
    given = parser.parse_args()
    for name, predict in {"tile": Localizer(open_engine(given.model)), "photo": whole(given.model)}.items():
        for key, value in measured(predict, given.data, given.quick, given.large).items():
            print(f"{name:6} {key:34} {value:.3f}", flush=True)


def measured(predict: Any, data: Path, quick: int | None, large: int) -> dict[str, float]:
    """Return all figures of one predictor."""
    found: dict[str, float] = {}
    results: dict[str, dict[str, list[tuple[float, float]]]] = {"as is": {}, "JPEG 90": {}}
    for case in published(data / "forged/dev", "image", quick):
        result = predict(case.pixels)
        gain = metrics.average_precision(result.scores, case.mask) - float(case.mask.mean())
        kinds = results["JPEG 90" if case.jpeg else "as is"]
        kinds.setdefault(case.kind, []).append((gain, metrics.iou(result.mask, case.mask)))
    for label, kinds in results.items():
        means = {kind: np.nanmean(pairs, axis=0) for kind, pairs in kinds.items()}
        for kind, (gain, iou) in means.items():
            found |= {f"{label}, {kind}, AP - share": float(gain), f"{label}, {kind}, IoU": float(iou)}
        gain, iou = np.mean(list(means.values()), axis=0)
        found |= {f"{label}, AP - share": float(gain), f"{label}, IoU": float(iou)}
    photos = sorted((data / "photos/valid").iterdir(), key=lambda path: path.stat().st_size)
    flagged = [predict(read_photo(path).pixels).area > FLAGGED for path in photos[:quick]]
    found["untouched with more than 2 % flagged"] = float(np.mean(flagged))
    seams, kept = [], []
    for path in photos[-large:]:
        pixels = read_photo(path).pixels[:1500, :2000]
        result = predict(pixels)
        seams.append(seam_ratio(result.scores))
        cropped = predict(np.ascontiguousarray(pixels[CROP:, CROP:]))
        if result.mask[CROP:, CROP:].any() or cropped.mask.any():
            kept.append(metrics.iou(cropped.mask, result.mask[CROP:, CROP:]))
    found |= {"seam ratio, median": float(np.median(seams)), "seam ratio, worst": float(np.max(seams))}
    return found | {"mask IoU after a crop": float(np.mean(kept)) if kept else float("nan")}


def seam_ratio(scores: NDArray[np.float32], stride: int = 288, overlap: int = 32) -> float:
    """Return the mean difference of neighbours in the overlaps of tiles over that elsewhere, the worse direction."""
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(scores, axis=axis)).mean(axis=1 - axis)
        place = np.arange(len(steps)) % stride
        inside = (place >= overlap) | (np.arange(len(steps)) < overlap)
        if (~inside).any():
            ratios.append(float(steps[~inside].mean() / max(float(steps[inside].mean()), 1e-6)))
    return max(ratios, default=float("nan"))


if __name__ == "__main__":
    main()
