"""The paper's experiments as runs: each trains and tests a grid of cells, and leaves tables and figures."""

from declip.reproduce.report import render
from declip.reproduce.runs import EXPERIMENTS, reproduce

__all__ = ["EXPERIMENTS", "render", "reproduce"]
