"""Bodies that are not what they should be, and the one shape of every error."""

from __future__ import annotations

import pytest
from aiohttp import web

from api import problems, wire
from api.guard import address_of
from api.router import Route, install
from shared.errors import InvalidError, MalformedError, QueueError, SettingsError

TEXT = b'"message":{"kind":"text","text":{"body":"x"}}'
TEMPLATE = (
    b'{"message":{"kind":"template","template":{"name":"a","language_code":"en","components":%b}}}'
)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"message":{"kind":"text","text":{}}}', "/message/text/body"),
        (b'{"message":{"kind":"text","text":{"body":1}}}', "/message/text/body"),
        (b"{" + TEXT + b',"recipients":{}}', "/recipients"),
        (b"{" + TEXT + b',"a/b~":1}', "/a~1b~0"),
        (TEMPLATE % b'[{"type":"body"},{"type":1}]', "/message/template/components/1/type"),
    ],
)  # fmt: skip
def test_a_fault_has_a_pointer(body: bytes, pointer: str) -> None:
    with pytest.raises(InvalidError) as caught:
        wire.decode(body, wire.SendRequest)
    assert [f.pointer for f in caught.value.faults] == [pointer]


def test_what_is_not_json_is_said_before_what_is_wrong_in_it() -> None:
    with pytest.raises(MalformedError) as caught:
        wire.decode(b'{"message":1,"x":', wire.SendRequest)
    assert caught.value.word == "bad_json"


def test_key_order_and_white_space_make_no_other_request() -> None:
    one = wire.decode(b"{" + TEXT + b',"name":"a"}', wire.SendRequest)
    two = wire.decode(b'{ "name" : "a",\n' + TEXT + b"}", wire.SendRequest)
    assert wire.canonical(one) == wire.canonical(two)


def test_a_break_may_stand_in_a_text_body_only() -> None:
    body = b'{"message":{"kind":"text","text":{"body":"a\\nb\\u0009"}},"recipients":["+1\\n"]}'
    at = "/message/text/body"
    assert wire.decode(body, wire.SendRequest, at).message
    with pytest.raises(InvalidError, match="control"):
        wire.decode(b"{" + TEXT + b',"name":"a\\u000ab"}', wire.SendRequest, at)


def test_every_code_has_one_status_and_a_title() -> None:
    assert problems.CODES["too_deep"] == (400, "Bad request")
    assert {status for status, _ in problems.CODES.values()} == {
        400, 401, 403, 404, 405, 406, 409, 413, 415, 417, 421, 422, 429, 500, 503,
    }  # fmt: skip


def test_a_full_store_and_an_unknown_error_say_no_more_than_that() -> None:
    full = problems.respond(QueueError("secret", refused=True, full=True))
    assert full.status == 503
    assert full.headers["Retry-After"] == "5"
    other = problems.respond(KeyError("secret"), request_id="r")
    assert other.status == 500
    for response in (full, other):
        assert isinstance(response.body, bytes)
        assert b"secret" not in response.body


async def _handler(_request: web.Request) -> web.Response:
    return web.Response()


def test_a_route_without_a_policy_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="/x"):
        install(web.Application(), [Route("GET", "/x", _handler)])


@pytest.mark.parametrize(
    ("peer", "hops", "found"),
    [
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::ffff:192.0.2.1", "", "192.0.2.1"),
        ("2001:db8::1:2", "", "2001:db8::/64"),
    ],
)
def test_only_a_trusted_proxy_names_the_client(peer: str, hops: str, found: str) -> None:
    class Settings:
        trusted_proxies = ("10.0.0.0/8",)

    class Request:
        remote = peer
        headers = web.Response(headers={"X-Forwarded-For": hops}).headers

    assert address_of(Request(), Settings()) == found  # type: ignore[arg-type]
