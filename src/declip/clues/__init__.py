"""Clues: traces of manipulation that can be found without a network, each with its reason."""
