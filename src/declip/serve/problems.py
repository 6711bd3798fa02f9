"""Errors that a request is answered with, as problem JSON (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

__all__ = ["ProblemError", "out_of_memory", "status_of"]


class ProblemError(Exception):
    """An answer that is an error: its status, what is wrong, and what to do.

    retry: seconds after which another try makes sense (Retry-After). errors: rows of single pictures.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retry: int | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {}) | ({} if retry is None else {"Retry-After": str(retry)})
        self.errors = list(errors)

    def response(self) -> Response:
        """Return it as application/problem+json."""
        title = HTTPStatus(self.status).phrase
        body: dict[str, Any] = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        if self.errors:
            body["errors"] = self.errors
        return Response(json.dumps(body), self.status, self.headers, media_type="application/problem+json")


def out_of_memory(error: Exception) -> ProblemError | None:
    """Return the 503 for an error that lacked memory, which may be the doing of other requests; else None."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return ProblemError(503, "there is not enough memory for this picture now; try again", retry=10)
    return None


def status_of(kinds: Sequence[str]) -> int:
    """Return the status of a request of which no picture could be localized, by the kinds of its error rows."""
    found = set(kinds)
    if "internal" in found:
        return 500
    if "write" in found:
        return 503
    return {frozenset({"too-large"}): 413, frozenset({"format"}): 415}.get(frozenset(found), 422)
