"""Measuring models and maps on samples with known masks."""

from declip.evaluation.evaluation import FILES, Evaluation, Figures, Maps, Row, Summary, check_free, evaluate

__all__ = ["FILES", "Evaluation", "Figures", "Maps", "Row", "Summary", "check_free", "evaluate"]
