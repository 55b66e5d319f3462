"""How the pretended Graph judges a request. Pure but for its own counters; knows no socket."""

from __future__ import annotations

import hashlib
import re
from statistics import NormalDist
from typing import Any, Final, Literal

import msgspec

from shared.graph_codes import ROWS, row_of

Cut = Literal["before_read", "after_read", "in_headers", "in_body"]

_TO: Final = re.compile(r"\A\+?[0-9 ()-]{5,30}\Z")
_SPACES: Final = re.compile(r"[\n\t]| {5}")
_OPAQUE: Final = re.compile(r"\Ad1\.([^.]+)\.([0-9]+)\.([0-9]+)\.([0-9a-f]+)\Z")
_LISTED: Final = frozenset(row.code for row in ROWS)
_NORMAL: Final = NormalDist()
_P99: Final = _NORMAL.inv_cdf(0.99)
_OPAQUE_MAX: Final = 512
_TEXT_MAX: Final = 4_096
_BODY_MAX: Final = 1_024
_KINDS: Final = frozenset(
    {"text", "template", "image", "video", "audio", "document", "sticker", "interactive"}
    | {"location", "contacts", "reaction"}
)
PAIR_S: Final = 6.0
PAIR_CREDIT: Final = 45
HTML: Final = "text/html"
JSON: Final = "application/json; charset=UTF-8"


class Opaque(msgspec.Struct, frozen=True):
    """`biz_opaque_callback_data` taken apart: `d1.<job>.<position>.<attempt>.<mac>`."""

    job: str
    position: int
    attempt: int
    mac: str


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A template this sandbox knows.

    Attributes:
        body: text with `{{1}}` or `{{name}}`; its placeholders are the parameters asked for.
        header: kind of the header's parameter; None without one.
        buttons: as Graph lists them.
    """

    name: str
    language: str
    body: str
    category: str = "UTILITY"
    header: str | None = None
    status: Literal["APPROVED", "PAUSED", "DISABLED"] = "APPROVED"
    buttons: list[dict[str, Any]] = []

    @property
    def parameters(self) -> list[str]:
        """Return the placeholders of the body, in order of their first use."""
        return list(dict.fromkeys(re.findall(r"\{\{(\w+)\}\}", self.body)))

    @property
    def is_named(self) -> bool:
        """Tell whether parameters are told apart by their names."""
        return bool(self.parameters) and not self.parameters[0].isdigit()

    def listed(self) -> dict[str, Any]:
        """Return the template as Graph's list shows it."""
        parts: list[dict[str, Any]] = []
        if self.header is not None:
            parts.append({"type": "HEADER", "format": self.header.upper()})
        parts.append({"type": "BODY", "text": self.body})
        if self.buttons:
            parts.append({"type": "BUTTONS", "buttons": self.buttons})
        return {
            "name": self.name,
            "parameter_format": "NAMED" if self.is_named else "POSITIONAL",
            "components": parts,
            "language": self.language,
            "status": self.status,
            "category": self.category,
            "quality_score": {"score": "GREEN", "date": 1_790_000_000},
        }


TEMPLATES: Final = (
    Template("order_update", "en_US", "Your order {{1}} is on its way."),
    Template(
        "spring_sale", "en_US", "Hello {{first_name}}, use {{code}} until Sunday.", "MARKETING"
    ),
    Template("picture_offer", "en_US", "Look at this.", "MARKETING", header="image"),
    Template("paused_offer", "en_US", "A paused offer.", "MARKETING", status="PAUSED"),
)


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """Every switch; `PATCH /_sandbox/config` sets them at once.

    Attributes:
        rate: messages per second of a number; 0 = no limit.
        rates: the same for single numbers, by phone number id.
        burst_s: how much of the rate may come at once.
        latency_ms: median answer time; 0 = at once.
        latency_p99_ms: its 99th percentile.
        fail: share of numbers refused with 131026, chosen by a seeded hash.
        seed: of `fail`.
        suffix_faults: the families of faults by the last four digits of +1555… numbers.
        pair_limit: one message in 6 s to the same recipient, credit 45.
        throttle_http: status that throttles come with.
        retry_after_s: the Retry-After header of throttles; 0 = none.
        regain_min: `estimated_time_to_regain_access` of refusals by a call limit, minutes.
        window: `strict` refuses free text, as there is no inbound message here.
        country: the senders' country code, put before numbers without `+`.
        body_limit: refuse filled-in bodies above 1,024 characters with 132005.
        numbers: phone number ids that exist; empty = every one.
        tokens: token to the phone number id it may use; empty = every token.
        revoked: tokens that are no longer valid; so is any that begins with `revoked`.
        list_code: what lists of templates are refused with; None = they are shown.
    """

    rate: float = 80.0
    rates: dict[str, float] = {}
    burst_s: float = 0.1
    latency_ms: float = 80.0
    latency_p99_ms: float = 0.0
    fail: float = 0.0
    seed: int = 1
    suffix_faults: bool = True
    pair_limit: bool = True
    throttle_http: Literal[400, 429] = 400
    retry_after_s: int = 0
    regain_min: int = 0
    window: Literal["open", "strict"] = "open"
    country: str = "1"
    body_limit: bool = True
    numbers: list[str] = []
    tokens: dict[str, str] = {}
    revoked: list[str] = []
    list_code: int | None = None


class Raw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer given literally.

    Attributes:
        headers: sent beside ours, such as `Location` or `Retry-After`.
    """

    status: int
    body: str
    content_type: str = HTML
    headers: dict[str, str] = {}


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a fault script; see `Script`.

    Attributes:
        transient: Graph's `is_transient` beside a `code`.
        wamid: given to every acceptance in place of a new one.
        message_status: of a paced template.
        failed: the code of the webhook `failed` that follows an acceptance.
        merge: fields put over those of an acceptance, at the top.
        gzip: the body is compressed.
        chunked: the body comes in chunks, without a length.
        endless: after the answer's head there is no end of white space.
    """

    record: bool | None = None
    accept: bool = False
    code: int | None = None
    http: int | None = None
    transient: bool = False
    raw: Raw | None = None
    wamid: str | None = None
    message_status: str | None = None
    failed: int | None = None
    merge: dict[str, Any] = {}
    gzip: bool = False
    chunked: bool = False
    endless: bool = False
    cut: Cut | None = None
    reset: bool = False
    hang: bool = False
    delay_ms: int | None = None
    drip_bytes_per_s: int = 0
    times: int = 1


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which requests a script is for; every field given must fit."""

    to: str | None = None
    suffix: str | None = None
    sender: str | None = None
    every: int | None = None


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Step k answers the k-th request for a recipient; the last one repeats."""

    match: Match
    steps: list[Step]


class Verdict(msgspec.Struct):
    """What becomes of a request.

    Attributes:
        word: accepted, refused, throttled or dropped.
        step: how the answer travels; its `delay_ms` replaces the latency.
    """

    word: str
    code: int | None = None
    http: int = 200
    details: str = ""
    step: Step | None = None


class Request(msgspec.Struct):
    """A send, decoded as far as anybody asks.

    Everything is `Any`: a wrong type is answered as Graph does, not by the decoder.
    """

    messaging_product: Any = None
    recipient_type: Any = "individual"
    to: Any = None
    type: Any = "text"
    text: Any = None
    template: Any = None
    biz_opaque_callback_data: Any = None


def parse_opaque(text: object) -> Opaque | None:
    """Return Drumbeat's opaque value taken apart; None when it has another form."""
    found = _OPAQUE.match(text) if isinstance(text, str) else None
    return Opaque(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def delivered_to(to: str, country: str) -> str:
    """Return the number that Meta sends to: without `+` it prepends the sender's country code.

    >>> delivered_to("1 (631) 555-1234", "91")
    '9116315551234'
    """
    digits = "".join(filter(str.isdigit, to))
    return digits if to.startswith("+") else country + digits


def whatsapp_id(number: str) -> str:
    """Return `wa_id`: Mexico gets a 1, Brazil loses its ninth digit, as Meta does."""
    if number.startswith("52") and len(number) == 12:  # noqa: PLR2004 - country code and ten digits
        return "521" + number[2:]
    if number.startswith("55") and len(number) == 13 and number[4] == "9":  # noqa: PLR2004 - likewise
        return number[:4] + number[5:]
    return number


class Behaviour:
    """The rules and what they remember: buckets, pairs and how often each number has asked."""

    def __init__(self, config: Config) -> None:
        """Begin with the built-in templates and no scripts."""
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget all but the switches."""
        self.scripts: list[Script] = []
        self.templates = {(t.name, t.language): t for t in TEMPLATES}
        self._due: dict[str, float] = {}
        self._pairs: dict[tuple[str, str], float] = {}
        self._asked: dict[str, int] = {}
        self._requests = 0

    def latency_s(self, draw: float) -> float:
        """Return an answer time from a draw of [0, 1): log-normal by median and p99."""
        median = self.config.latency_ms
        if median <= 0:
            return 0.0
        p99 = self.config.latency_p99_ms or 5 * median
        at = _NORMAL.inv_cdf(min(max(draw, 1e-9), 1 - 1e-9))
        return float(median * (p99 / median) ** (at / _P99)) / 1000

    def is_number(self, sender: str) -> bool:
        """Tell whether a phone number id exists here."""
        numbers = self.config.numbers
        return not numbers or sender in numbers

    def refused_token(self, token: str, sender: str) -> Verdict | None:
        """Return the refusal of a token, or None when it may use the number."""
        config = self.config
        if not token or token in config.revoked or token.startswith("revoked"):
            return Verdict("refused", 190, 401, "Invalid OAuth access token.")
        if config.tokens:
            if token not in config.tokens:
                return Verdict("refused", 190, 401, "Invalid OAuth access token.")
            if config.tokens[token] not in ("", sender):
                return Verdict("refused", 10, 403, "No permission for this phone number.")
        if not self.is_number(sender):
            return self._refuse(100, "The object does not exist.")
        return None

    def refused_list(self) -> Verdict | None:
        """Return the refusal of a list of templates, or None when it is shown."""
        code = self.config.list_code
        return None if code is None else self._refuse(code)

    def listed(self, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """Return at most `limit` templates from place `after` on, and whether there are more."""
        found = [template.listed() for template in self.templates.values()]
        return found[after : after + limit], len(found) > after + limit

    def judge(self, request: Request, sender: str, delivered: str, now: float) -> Verdict:
        """Return what becomes of a request that may be made.

        Args:
            request: its body.
            sender: phone number id in the path.
            delivered: the number it is for.
            now: seconds, monotonic.
        """
        fault = self._envelope(request) or self._content(request)
        if fault is not None:
            return fault
        if not self._has_room(sender, now):
            return self._refuse(130429, "Message failed to send: rate limit hit.")
        self._requests += 1
        asked = self._asked.get(delivered, 0) + 1
        self._asked[delivered] = asked
        step = self._scripted(sender, delivered, asked)
        if step is None and self.config.suffix_faults and delivered.startswith("1555"):
            step = _family(delivered[-4:], asked)
        if step is not None:
            return self._follow(step)
        if self.config.pair_limit and not self._pair_has_room(sender, delivered, now):
            return self._refuse(131056, "Too many messages to this recipient.")
        if self.config.fail and self._is_chosen(delivered):
            return self._refuse(131026, "Message undeliverable.")
        return Verdict("accepted")

    def _refuse(self, code: int, details: str = "", http: int | None = None) -> Verdict:
        statuses = row_of(code, 400).http or (400,)
        status = http or statuses[0]
        if http is None and self.config.throttle_http in statuses:
            status = self.config.throttle_http
        word = "throttled" if code == 130429 else "refused"  # noqa: PLR2004 - Graph's throughput code
        return Verdict(word, code, status, details)

    def _follow(self, step: Step) -> Verdict:
        if step.code is not None:
            verdict = self._refuse(step.code, http=step.http)
        else:
            is_plain = step.raw is None and step.cut is None and not step.hang
            is_taken = (step.accept or is_plain) and step.record is not False
            verdict = Verdict("accepted" if is_taken else "dropped")
        if step.record:
            verdict.word = "accepted"
        verdict.step = step
        return verdict

    def _scripted(self, sender: str, delivered: str, asked: int) -> Step | None:
        for script in self.scripts:
            match = script.match
            if (
                (match.to is None or match.to.lstrip("+") == delivered)
                and (match.suffix is None or delivered.endswith(match.suffix))
                and (match.sender is None or match.sender == sender)
                and (match.every is None or self._requests % match.every == 0)
            ):
                return _step_at(script.steps, asked)
        return None

    def _has_room(self, sender: str, now: float) -> bool:
        rate = self.config.rates.get(sender, self.config.rate)
        if rate <= 0:
            return True
        due = max(self._due.get(sender, 0.0), now)
        # At least one message fits, however slow the number is.
        if due - now > max(self.config.burst_s - 1 / rate, 0.0):
            return False
        self._due[sender] = due + 1 / rate
        return True

    def _pair_has_room(self, sender: str, delivered: str, now: float) -> bool:
        due = max(self._pairs.get((sender, delivered), 0.0), now)
        if due - now > PAIR_S * (PAIR_CREDIT - 1):
            return False
        self._pairs[sender, delivered] = due + PAIR_S
        return True

    def _is_chosen(self, delivered: str) -> bool:
        text = f"{self.config.seed}:{delivered}".encode()
        draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        return draw < self.config.fail * 2**64

    def _envelope(self, request: Request) -> Verdict | None:
        if request.messaging_product != "whatsapp":
            return self._refuse(100, "messaging_product must be whatsapp")
        if request.recipient_type != "individual":
            return self._refuse(100, "recipient_type must be individual")
        if not isinstance(request.to, str) or not _TO.match(request.to):
            return self._refuse(100, "to is missing or not a phone number")
        opaque = request.biz_opaque_callback_data
        if opaque is not None and (not isinstance(opaque, str) or len(opaque) > _OPAQUE_MAX):
            return self._refuse(100, "biz_opaque_callback_data must be text of at most 512")
        if request.type not in _KINDS:
            return self._refuse(131051, "type is not supported")
        return None

    def _content(self, request: Request) -> Verdict | None:
        if request.type == "template":
            return self._template(request.template)
        if request.type != "text":
            return None
        text = request.text
        if not isinstance(text, dict) or "body" not in text:
            return self._refuse(131008, "text.body is missing")
        body = text["body"]
        if not isinstance(body, str) or not body.strip() or len(body) > _TEXT_MAX:
            return self._refuse(131009, "text.body must hold 1 to 4096 characters")
        if not isinstance(text.get("preview_url", False), bool):
            return self._refuse(131009, "text.preview_url must be a boolean")
        if self.config.window == "strict":
            return self._refuse(131047, "More than 24 hours since the recipient last replied")
        return None

    def _template(self, asked: object) -> Verdict | None:
        if not isinstance(asked, dict) or not isinstance(asked.get("name"), str):
            return self._refuse(131008, "template.name is missing")
        language = asked.get("language")
        if not isinstance(language, dict) or not isinstance(language.get("code"), str):
            return self._refuse(131008, "template.language.code is missing")
        template = self.templates.get((asked["name"], language["code"]))
        if template is None:
            return self._refuse(132001, "template name does not exist in the translation")
        if template.status != "APPROVED":
            return self._refuse(132015 if template.status == "PAUSED" else 132016)
        given: dict[str, list[dict[str, Any]]] = {"header": [], "body": []}
        components = asked.get("components", [])
        if not isinstance(components, list):
            return self._refuse(131009, "template.components must be a list")
        for component in components:
            if not isinstance(component, dict) or not isinstance(component.get("type"), str):
                return self._refuse(131008, "template.components[].type is missing")
            parameters = component.get("parameters", [])
            if not isinstance(parameters, list) or not all(isinstance(p, dict) for p in parameters):
                return self._refuse(131009, "template.components[].parameters must be a list")
            given.setdefault(component["type"].lower(), []).extend(parameters)
        return self._parameters(template, given)

    def _parameters(
        self, template: Template, given: dict[str, list[dict[str, Any]]]
    ) -> Verdict | None:
        names = template.parameters
        header, body = given["header"], given["body"]
        if len(header) != (template.header is not None) or len(body) != len(names):
            return self._refuse(
                132000, f"body: {len(body)} parameters given, {len(names)} expected"
            )
        if header and header[0].get("type") != template.header:
            return self._refuse(132012, f"header: expected {template.header}")
        length = len(template.body)
        for index, parameter in enumerate(body):
            text = parameter.get("text")
            if parameter.get("type") != "text" or not isinstance(text, str):
                return self._refuse(132012, f"body: parameter {index} must be text")
            if template.is_named and parameter.get("parameter_name") not in names:
                return self._refuse(100, "body: parameter_name is missing or unknown")
            if _SPACES.search(text):
                return self._refuse(132018, "newline, tab or more than 4 spaces in a row")
            length += len(text)
        if self.config.body_limit and length > _BODY_MAX:
            return self._refuse(132005, "body: translated text too long")
        return None


def _step_at(steps: list[Step], asked: int) -> Step:
    for step in steps:
        asked -= step.times
        if asked <= 0:
            return step
    return steps[-1]


def _family(digits: str, asked: int) -> Step | None:
    """Return what the last four digits of a +1555… number ask for."""
    first, rest = digits[0], digits[1:]
    if first == "8" and int("131" + rest) in _LISTED:
        return Step(code=int("131" + rest))
    if first == "7" and int("132" + rest) in _LISTED:
        return Step(code=int("132" + rest))
    if first == "9" and int("131" + rest) in _LISTED:
        return Step(failed=int("131" + rest))
    if first == "6":
        code = {"00": 131000, "16": 131016, "29": 130429}.get(rest[1:])
        return Step(code=code) if code is not None and asked <= int(rest[0]) else None
    if first == "5" and rest[0] in "01":
        return _TRANSPORT.get((rest[0] == "1", rest[1:]))
    return None


def _transport(*, record: bool) -> dict[tuple[bool, str], Step]:
    return {
        (record, "01"): Step(record=record, accept=True, cut="after_read", reset=True),
        (record, "02"): Step(record=record, accept=True, hang=True),
        (record, "03"): Step(record=record, accept=True, cut="in_body"),
        (record, "04"): Step(record=record, raw=Raw(502, "<html>502 Bad Gateway</html>")),
        # An acceptance that the ledger does not know would be a lie: late, it is a refusal.
        (record, "05"): Step(
            record=record, accept=record, code=None if record else 131000, delay_ms=5_000
        ),
    }


_TRANSPORT: Final = _transport(record=False) | _transport(record=True)
