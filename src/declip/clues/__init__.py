"""What can be seen in a photo without a trained network: training-free maps, and clues with their reasons.

    declip.evaluate(clues.ErrorLevel(), samples)
    for result in clues.DoubleJpeg().map(["photo.jpg"]): ...

Each looks at one trace: `ErrorLevel` and `JpegGhost` at what saving the photo as JPEG again does to it, `NoiseLevel` at
the strength of its noise, `DoubleJpeg` at the histograms of its DCT coefficients. All are `Predictor`s: photos go in
in any form `read_photo` takes, maps come out in order, and what cannot be read comes out as its ImageError. They
work on blocks of 8×8 px with windows of some blocks around them, and show nothing finer than that.

Scores are (H, W) float32 in [0, 1] on a scale that is written with each map and is the same for every photo: no map is
stretched to its own range. 1 = more suspicious; only `DoubleJpeg` gives a probability. Texture, light and flat areas
leave the same traces: a bright spot is a reason to look closer and nothing more. So there is no verdict, the image
score is the mean of the map, and the threshold of the mask is 0.5 unless another is given; it is not calibrated.
"""

from declip.clues.comparison import Comparison, compare
from declip.clues.copy_move import CopyMove
from declip.clues.double_jpeg import DoubleJpeg
from declip.clues.exemplar_fill import ExemplarFill
from declip.clues.findings import Clue, Finding
from declip.clues.jpeg_history import ForeignGrid, SavedOnce
from declip.clues.maps import Baseline, ErrorLevel, JpegGhost, NoiseLevel
from declip.clues.rigid import RepeatedGrain
from declip.regions import Kind

__all__ = [
    "BASELINES",
    "CLUES",
    "Baseline",
    "Clue",
    "Comparison",
    "CopyMove",
    "DoubleJpeg",
    "ErrorLevel",
    "ExemplarFill",
    "Finding",
    "ForeignGrid",
    "JpegGhost",
    "NoiseLevel",
    "RepeatedGrain",
    "SavedOnce",
    "compare",
]

# What is looked for in every photo, by its kind.
CLUES: dict[Kind, Clue] = {clue.kind: clue for clue in (CopyMove(), RepeatedGrain())}
BASELINES: dict[str, type[Baseline]] = {kind.name: kind for kind in (ErrorLevel, NoiseLevel, JpegGhost, DoubleJpeg)}
