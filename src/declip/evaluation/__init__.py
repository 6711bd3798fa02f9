"""Measuring models and maps on samples with known masks."""

from declip.evaluation.evaluation import FILES, Evaluation, check_free
from declip.evaluation.figures import Figures, Row, Summary
from declip.evaluation.maps import Maps
from declip.evaluation.measure import evaluate

__all__ = ["FILES", "Evaluation", "Figures", "Maps", "Row", "Summary", "check_free", "evaluate"]
