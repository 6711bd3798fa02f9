"""The OpenAPI description is what the service does: Schemathesis makes requests of it, right and wrong ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from declip import serve
from declip.localize.localizer import Localizer
from declip.serve.forms import FIELDS
from tests.serve.serving import FakeEngine, on_a_port, picture

# Not positive_data_acceptance: a file of any bytes fits the description, and most are no pictures (415).
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
    ignored_auth,
]

# Too many files are 413, which Schemathesis does not count as a refusal by itself.
CONFIG = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 401, 403, 406, 413, 415, 422]}}}
TOKEN = "schemathesis"
ASKED = ("/v1/localize", "/v1/metadata", "/v1/report", "/v1/detectability")

schemathesis.openapi.format("binary", st.sampled_from([picture(1, (8, 8)), picture()[:200]]) | st.binary(max_size=64))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with on_a_port(Localizer(FakeEngine()), serve.Limits(pixels=10_000, files=3), token=TOKEN) as found:
        yield found


def check(url: str, examples: int) -> Counter[tuple[str, int]]:
    """Try every operation, with requests as described and others; how often each path gave each status."""
    seen: Counter[tuple[str, int]] = Counter()
    schema = schemathesis.openapi.from_url(f"{url}openapi.json", config=schemathesis.Config.from_dict(CONFIG))
    for result in schema.get_all_operations():
        operation = result.ok()
        modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:

            @given(case=operation.as_strategy(mode))
            @settings(
                max_examples=examples if operation.body else 1,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            def one(case: Any) -> None:
                response = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
                seen[case.operation.path, response.status_code] += 1
                case.validate_response(response, checks=CHECKS)

            one()
    return seen


def test_it_describes_every_path_and_field(url: str) -> None:
    paths = httpx.get(f"{url}openapi.json").json()["paths"]
    assert set(paths) == {*ASKED, "/v1/models", "/metrics", "/healthz", "/readyz"}
    for name, fields in FIELDS.items():
        operation = paths[f"/v1/{name}"]["post"]
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert list(form["properties"]) == ["file", *fields] and form["additionalProperties"] is False
        statuses = {"200", "400", "401", "403", "406", "408", "413", "415", "422", "429", "500", "503"}
        assert set(operation["responses"]) == statuses - ({"406"} if name != "localize" else set())


@pytest.mark.slow
def test_it_does_what_it_describes(url: str) -> None:
    seen = check(url, 100)
    assert {path for path, _ in seen} == {*ASKED, "/v1/models", "/metrics", "/healthz", "/readyz"}
    assert all(seen[path, 200] > 0 and seen[path, 422] > 0 for path in ASKED)
    assert all(seen[path, 200] == 1 for path in ("/v1/models", "/metrics", "/healthz", "/readyz"))
