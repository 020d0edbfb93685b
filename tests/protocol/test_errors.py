"""The error and close tables: complete, and fit for the wire."""

import pytest

from streamer.protocol.errors import (
    CLOSE_REASONS,
    ERROR_MEANINGS,
    CloseReason,
    ErrorCode,
    ProtocolError,
)


def test_every_code_has_a_meaning() -> None:
    """The reference, which is made from the table, leaves no code out."""
    assert set(ERROR_MEANINGS) == set(ErrorCode)
    assert all(meaning.endswith(".") for meaning in ERROR_MEANINGS.values())


def test_a_protocol_error_carries_what_the_answer_needs() -> None:
    """Code, message, details and request_id are those of the `error` message to be sent."""
    error = ProtocolError(ErrorCode.FORBIDDEN, "not yours", details={"a": 1}, request_id="r")
    assert (error.code, error.message) == (ErrorCode.FORBIDDEN, "not yours")
    assert (error.details, error.request_id) == ({"a": 1}, "r")
    assert str(error) == "FORBIDDEN: not yours"


@pytest.mark.parametrize("reason", CLOSE_REASONS, ids=lambda reason: str(reason.code))
def test_a_close_reason_fits_its_frame(reason: CloseReason) -> None:
    """A close frame has 123 bytes for the reason, and its code is one that may be sent."""
    assert 0 < len(reason.reason.encode()) <= 123
    # RFC 6455, 7.4: 1004 to 1006 and 1015 are never in a frame.
    assert reason.code in {1000, 1001, 1002, 1007, 1008, 1009, 1013} or 4000 <= reason.code < 5000


def test_reasons_with_one_code_ask_the_same_of_the_client() -> None:
    """A client decides by the code alone whether to reconnect."""
    asked = {(reason.code, reason.client_should) for reason in CLOSE_REASONS}
    assert len(asked) == len({code for code, _ in asked})
    assert len({reason.reason for reason in CLOSE_REASONS}) == len(CLOSE_REASONS)
