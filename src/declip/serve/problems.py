"""What cannot be answered, as problem JSON (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

__all__ = ["ProblemError", "status_of"]


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
        """As application/problem+json."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = self.errors
        return Response(json.dumps(body), self.status, self.headers, media_type="application/problem+json")


def status_of(kinds: Sequence[str]) -> int:
    """The status of a request of which no picture could be localized, by the kinds of its error rows."""
    match set(kinds):
        case found if "internal" in found:
            return 500
        case found if "write" in found:
            return 503
        case found if found == {"too-large"}:
            return 413
        case found if found == {"format"}:
            return 415
    return 422
