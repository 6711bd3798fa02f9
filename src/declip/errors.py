"""Every exception declip raises on purpose, as a tree.

DeclipError
├── ImageError         a picture cannot be read, or is outside the limits
├── SpecError          a model description is wrong or contradicts itself
├── WeightsError       a weight file is missing, damaged, or does not fit
├── DatasetError       a data set or manifest is not as described
├── ExportError        an exported file does not compute what its source computes
├── TrainingError      a training diverged
├── SigningError       a key does not fit, or there is no time stamp
└── MissingExtraError  an optional dependency is not installed (says the pip line)

Each message says what came, what was expected, and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = [
    "DatasetError",
    "DeclipError",
    "ExportError",
    "ImageError",
    "MissingExtraError",
    "SigningError",
    "SpecError",
    "TrainingError",
    "WeightsError",
    "naming_extras",
]


class DeclipError(Exception):
    """Base of every error declip raises on purpose."""


class ImageError(DeclipError):
    """A picture that cannot be read or is outside the limits.

    `image` is its path or a short description; `message` says what is wrong without naming it; `kind` is a stable word
    for machines: "missing", "format", "corrupt", "too-large", "exists", "input", "write" (a result cannot be
    written), "read" (its store cannot be reached), "crash" (its process died), or "internal": the fault is not the
    picture's.
    """

    def __init__(self, image: str, kind: str, message: str) -> None:
        super().__init__(f"{image}: {message}")
        self.image = image
        self.kind = kind
        self.message = message

    @classmethod
    def out_of_memory(cls, image: str) -> ImageError:
        """Return the error of a picture that the memory does not hold: kind "too-large", its cause a MemoryError."""
        error = cls(
            image,
            "too-large",
            "there is not enough memory for this picture; give declip more, or make the picture smaller",
        )
        error.__cause__ = MemoryError()
        return error

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str]]:
        return type(self), (self.image, self.kind, self.message)  # as it is made: it travels between processes


class SpecError(DeclipError):
    """A model description that is wrong or contradicts itself."""


class WeightsError(DeclipError):
    """A weight file that is missing, damaged, or does not fit the model."""


class DatasetError(DeclipError):
    """A data set or manifest that is not as described."""


class ExportError(DeclipError):
    """An exported file that does not compute what its source computes; the file is not kept."""


class TrainingError(DeclipError):
    """A training that diverged: its loss, or the scores in validation, are not finite any more."""


class SigningError(DeclipError):
    """A key that cannot be used, a file that is no part of a signed report, or an authority without a time stamp."""


class MissingExtraError(DeclipError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package '{package}', which is not installed: pip install 'declip[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.package, self.extra)

    @classmethod
    def behind(cls, error: ModuleNotFoundError) -> MissingExtraError | None:
        """Return the extra whose absence this failed import shows; None if the package belongs to no extra."""
        package = (error.name or "").partition(".")[0]
        extra = _EXTRA_OF.get(package)
        return None if extra is None else cls(package, extra)


# Packages as they are imported → the extra that installs them.
_EXTRA_OF = {
    **dict.fromkeys(
        ("torch", "torchvision", "timm", "safetensors", "accelerate", "onnxscript", "tensorboard", "matplotlib"),
        "torch",
    ),
    **dict.fromkeys(("skimage", "pypatchmatch", "patchmatch", "diffusers"), "synthesis"),
    **dict.fromkeys(("imagehash", "sklearn", "datasets", "jpeglib"), "data"),
    "pillow_heif": "heif",
    **dict.fromkeys(("jinja2", "cryptography", "rfc3161_client"), "report"),
    "c2pa": "c2pa",
    "openvino": "openvino",
    **dict.fromkeys(("fastapi", "uvicorn", "python_multipart", "prometheus_client"), "serve"),
    **dict.fromkeys(("ray", "pyarrow", "fsspec"), "ray"),
}


@contextlib.contextmanager
def naming_extras() -> Iterator[None]:
    """Turn a failed import inside the `with` into MissingExtraError, where the package belongs to an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            raise missing from error
        raise
