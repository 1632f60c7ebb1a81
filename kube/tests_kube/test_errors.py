"""The table of API answers and the error each becomes."""

from __future__ import annotations

from typing import Any

import pytest
from modelfleet_kube import errors
from modelfleet_kube.errors import ErrorKind, KubeError, error_from_status

TERMINATING = {"details": {"causes": [{"reason": "NamespaceTerminating"}]}, "message": "being terminated"}
DUPLICATE = {
    "message": 'failed to create typed patch object (a/b; apps/v1): .env: duplicate entries for key [name="A"]'
}
QUANTITY = {"message": "unable to convert unstructured object to apps/v1: quantities must match the regular expression"}


@pytest.mark.parametrize(
    ("code", "status", "expected", "kind"),
    [
        (400, {}, errors.InvalidError, ErrorKind.USER),
        (401, {}, errors.UnavailableError, ErrorKind.NOT_YET),
        (403, {"reason": "Forbidden"}, errors.ForbiddenError, ErrorKind.USER),
        (403, TERMINATING, errors.UnavailableError, ErrorKind.NOT_YET),
        (404, {}, errors.NotFoundError, ErrorKind.NOT_YET),
        (405, {}, errors.ProtocolError, ErrorKind.BUG),
        (409, {"reason": "AlreadyExists"}, errors.ConflictError, ErrorKind.NOT_YET),
        (410, {"reason": "Expired"}, errors.GoneError, ErrorKind.NOT_YET),
        (413, {}, errors.InvalidError, ErrorKind.USER),
        (415, {}, errors.ProtocolError, ErrorKind.BUG),
        (422, {"reason": "Invalid"}, errors.InvalidError, ErrorKind.USER),
        (429, {}, errors.UnavailableError, ErrorKind.NOT_YET),
        (500, {"message": "etcdserver: leader changed"}, errors.UnavailableError, ErrorKind.NOT_YET),
        (500, DUPLICATE, errors.InvalidError, ErrorKind.USER),
        (500, QUANTITY, errors.InvalidError, ErrorKind.USER),
        (503, {}, errors.UnavailableError, ErrorKind.NOT_YET),
        (504, {}, errors.UnavailableError, ErrorKind.NOT_YET),
    ],
)
def test_each_answer_becomes_one_of_three_kinds(
    code: int, status: dict[str, Any], expected: type[KubeError], kind: ErrorKind
) -> None:
    error = error_from_status(status, code=code)
    assert (type(error), error.kind, error.code) == (expected, kind, code)


def test_an_error_says_code_reason_and_message_and_keeps_the_servers_delay() -> None:
    error = error_from_status({"reason": "TooManyRequests", "message": "slow down"}, code=429, retry_after_seconds=3.0)
    assert str(error) == "429 TooManyRequests: slow down"
    assert error.retry_after_seconds == 3.0


def test_an_answer_without_a_status_body_still_says_its_code() -> None:
    assert str(error_from_status({}, code=502)) == "502: the API server answered 502"
