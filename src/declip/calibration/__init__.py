"""What scores mean, measured on a user's own photos: verdicts at known false-alarm rates, temperature, threshold.

`calibrate` takes a model file and writes another with the `Calibration` inside; `measure` does the same for an open
localizer and writes nothing. `fitting` has the rules they follow.
"""

from declip.calibration.fitting import THRESHOLDS, false_alarm_range, fit_temperature, fit_threshold
from declip.calibration.measure import RATES, Outcome, calibrate, measure
from declip.calibration.untouched import Place, Untouched, candidates, cut, model_scale, saved_again, with_pieces

__all__ = [
    "RATES",
    "THRESHOLDS",
    "Outcome",
    "Place",
    "Untouched",
    "calibrate",
    "candidates",
    "cut",
    "false_alarm_range",
    "fit_temperature",
    "fit_threshold",
    "measure",
    "model_scale",
    "saved_again",
    "with_pieces",
]
