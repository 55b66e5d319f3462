from __future__ import annotations

import zlib

import pytest

from worker.answer import BODY_MAX, inflate, mask_numbers, read

SENT = b'{"messages":[{"id":"wamid.X"}],"contacts":[{"wa_id":"1"}],"more":1}'
REFUSED = (
    b'{"error":{"message":"m","code":131026,"is_transient":true,"fbtrace_id":"T",'
    b'"error_data":{"details":"number +39 333 1234567 is gone"}}}'
)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, SENT, "accepted"),
        (201, SENT, "accepted"),
        (200, b"", "unknown"),
        (200, b"<html>", "unknown"),
        (200, b'{"messages":[]}', "unknown"),
        (200, b'{"messages":[{"id":""}]}', "unknown"),
        (200, b'{"messages":[{"id":7}]}', "unknown"),
        (200, b'{"messages":"no"}', "unknown"),
        (200, b"[" * 2_000, "unknown"),
        (200, b'{"messages":[{"id":"\xff"}]}', "unknown"),
        (200, SENT + b" " * BODY_MAX, "unknown"),
        (502, b"<html>bad gateway", "unknown"),
        (500, b'{"error":"no"}', "unknown"),
        (302, b"", "rejected"),
        (401, b"no", "rejected"),
        (404, b'{"error":{"code":true}}', "rejected"),
        (408, b"", "rejected"),
        (413, b"", "rejected"),
        (429, b"", "throttled"),
        (200, REFUSED, "rejected"),
        (500, REFUSED, "rejected"),
        (400, b'{"error":{"code":130429}}', "throttled"),
        (429, b'{"error":{"code":131056}}', "rejected"),
        (400, b'{"error":{"code":"190","error_data":"text"},"messages":3}', "rejected"),
    ],
)
def test_each_answer_has_its_class(status: int, body: bytes, kind: str) -> None:
    assert read(status, {}, body).kind == kind


def test_a_refusal_keeps_code_details_and_trace_but_no_number() -> None:
    answer = read(400, {}, REFUSED)
    assert (answer.code, answer.trace, answer.is_transient) == (131026, "T", True)
    assert answer.details == "number …67 is gone"


def test_a_code_as_text_is_read_too() -> None:
    assert read(400, {}, b'{"error":{"code":"190"}}').code == 190


def test_a_paced_template_keeps_its_status() -> None:
    body = b'{"messages":[{"id":"w","message_status":"held_for_quality_assessment"}]}'
    assert read(200, {}, body).message_status == "held_for_quality_assessment"


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7), ("9999", 300), ("-1", 0), ("soon", 0), ("", 0)]
)
def test_retry_after_is_read_and_capped(text: str, seconds: float) -> None:
    assert read(429, {"Retry-After": text}, b"").retry_after_s == seconds


@pytest.mark.parametrize(
    ("usage", "seconds"),
    [
        (
            '{"1":[{"estimated_time_to_regain_access":0},{"estimated_time_to_regain_access":5}]}',
            300,
        ),
        ("{", 0),
        ("[1]", 0),
        ('{"1":[1]}', 0),
        ('{"1":7}', 0),
    ],
)
def test_the_usage_header_counts_in_minutes(usage: str, seconds: float) -> None:
    body = b'{"error":{"code":80007}}'
    assert read(400, {"x-business-use-case-usage": usage}, body).regain_s == seconds


def test_decompression_stops_at_the_limit() -> None:
    def gzip(plain: bytes) -> bytes:
        packer = zlib.compressobj(wbits=31)
        return packer.compress(plain) + packer.flush()

    assert inflate(gzip(SENT), "gzip") == SENT
    assert inflate(gzip(bytes(10_000_000)), "gzip") is None
    assert inflate(gzip(SENT)[:-9], "gzip") is None
    assert inflate(SENT, "gzip") is None
    assert inflate(SENT, "br") is None


def test_short_digits_are_not_taken_for_a_phone_number() -> None:
    assert mask_numbers("code 131026 at 12") == "code 131026 at 12"
