"""Pictures: read with care, turned into what networks take, and shown with their maps."""

from declip.images import image, perturbations

__all__ = ["image", "perturbations"]
