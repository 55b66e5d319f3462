"""Read the environment and `.env` once, report every mistake at once, freeze the rest."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shared.errors import SettingsError

META_GRAPH_URL: Final = "https://graph.facebook.com"
API_METRICS_PORT: Final = 9464
WORKER_METRICS_PORT: Final = 9465
_GRACE_MARGIN_S: Final = 5
_BEATS_PER_IDLE: Final = 2
_TICKS_PER_LEASE: Final = 10
_KEY_BYTES_MIN: Final = 32
_REDIS_SCHEMES: Final = (
    "redis://", "rediss://", "unix://", "sentinel://", "sentinels://", "cluster://", "clusters://",
)  # fmt: skip
_FILE: Final = "_FILE"
_STRICT_PREFIX: Final = "BULK_"
_PREFIXES: Final = (
    "API_",
    "DATABASE_",
    "DRUMBEAT_",
    "GRAPH_",
    "METRICS_",
    "QUEUE_",
    "SSE_",
    "WHATSAPP_",
    "WORKER_",
)
_BOOLEANS: Final = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_LINE: Final = re.compile(r"\A(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)\Z", re.DOTALL)
_SINGLE: Final = re.compile(r"\A'([^']*)'\s*(?:#.*)?\Z")
_DOUBLE: Final = re.compile(r'\A"((?:[^"\\]|\\.)*)"\s*(?:#.*)?\Z')
_TOKEN: Final = re.compile(r"\A[!-~]+\Z")
_PASSWORD: Final = re.compile(r"(//[^/@\s]*:)[^/@\s]*@")


class Secret:
    """Text that neither `repr` nor `str` nor a log line shows.

    >>> Secret("hush")
    ***
    >>> Secret("hush").reveal()
    'hush'
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Keep the text out of sight."""
        self._text = text

    def reveal(self) -> str:
        """Return the text itself; for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        """Show that there is something, not what."""
        return "***"

    def __eq__(self, other: object) -> bool:
        """Compare with another secret only."""
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        """Hash like the text."""
        return hash(self._text)


class StoreUrl(str):
    """A store's address: a plain string to its door, whose `repr` hides the password.

    >>> StoreUrl("redis://me:hush@host/0")
    'redis://me:***@host/0'
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Show everything but the password."""
        return repr(_PASSWORD.sub(r"\1***@", str.__str__(self)))


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper):
    """Every variable, by its name in lower case; a field's description is its documentation.

    Attributes:
        warnings: sentences about names that look like ours and are not; no variable.
    """

    graph_api_version: Annotated[
        str,
        Meta(
            pattern=r"^v[0-9]{1,3}\.[0-9]{1,2}\Z",
            description="Graph version of senders without their own, as `vN.N`",
        ),
    ] = "v22.0"
    bulk_batch_size: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="recipients a chunk; with BULK_PAUSE_MS the default rate of a sender",
        ),
    ] = 50
    bulk_concurrency: Annotated[
        int, Meta(ge=1, le=100, description="requests at once per claim")
    ] = 5
    bulk_pause_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=3_600_000,
            description="a sender's default rate is BULK_BATCH_SIZE per this; 0 = no limit",
        ),
    ] = 1000
    bulk_max_retries: Annotated[
        int, Meta(ge=0, le=20, description="further attempts after the first")
    ] = 3
    bulk_retry_base_ms: Annotated[
        int, Meta(ge=10, le=60_000, description="first back-off, doubled each time, full jitter")
    ] = 500
    bulk_hard_cap: Annotated[
        int, Meta(ge=1, le=1_000_000, description="recipients a job may have")
    ] = 50_000
    disable_bulk_messaging: Annotated[
        bool,
        Meta(description="true on any one process holds the whole pool while that process lives"),
    ] = False
    redis_url: Annotated[
        StoreUrl | None,
        Meta(
            description="`redis://`, `unix://`, `sentinel://host:port,…/name` or "
            "`cluster://host:port,…` (with TLS `rediss`, `sentinels`, `clusters`); needed by api "
            "and worker, embedded by `up` and `demo` when unset"
        ),
    ] = None
    database_url: Annotated[
        StoreUrl | None,
        Meta(description="`postgresql://`; needed and embedded like REDIS_URL"),
    ] = None
    durability: Annotated[
        Literal["standard", "strict"],
        Meta(description="strict: Redis confirms its file at submit and for each window"),
    ] = "standard"
    redis_wait_replicas: Annotated[
        int, Meta(ge=0, le=5, description="replicas asked to have a submission; counted only")
    ] = 0
    redis_wait_ms: Annotated[
        int, Meta(ge=1, le=60_000, description="how long to wait for those replicas")
    ] = 1000
    queue_shards: Annotated[
        int, Meta(ge=1, le=64, description="hash tags; a new sender goes to the emptiest")
    ] = 1
    database_pool: Annotated[
        int, Meta(ge=2, le=100, description="PostgreSQL connections per process")
    ] = 10
    database_timeout_s: Annotated[
        float, Meta(ge=0.1, le=300, description="longest statement and longest wait for one")
    ] = 5
    database_schema: Annotated[
        str,
        Meta(
            pattern=r"^[a-z_][a-z0-9_]{0,62}\Z",
            description="PostgreSQL schema of all our tables, beside another application's",
        ),
    ] = "drumbeat"
    bulk_secret_key: Annotated[
        tuple[Secret, ...],
        Meta(
            description="encrypts senders' tokens; at least 32 bytes each, newest first, "
            "comma list; `up` and `demo` make one"
        ),
    ] = ()
    allow_volatile: Annotated[
        bool, Meta(description="accept a Redis without append-only file or with eviction")
    ] = False
    graph_base_url: Annotated[
        str, Meta(description="anything else than Meta's address is a sandbox and is said to be")
    ] = META_GRAPH_URL
    graph_client: Annotated[
        Literal["aiohttp", "thin"], Meta(description="HTTP client behind the Graph door")
    ] = "thin"
    whatsapp_phone_number_id: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9]{1,32}\Z")] | None,
        Meta(description="with WHATSAPP_ACCESS_TOKEN makes or updates the sender `default`"),
    ] = None
    whatsapp_access_token: Annotated[
        Secret | None, Meta(description="token of the sender `default`")
    ] = None
    whatsapp_business_account_id: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9]{1,32}\Z")] | None,
        Meta(description="business account of the sender `default`"),
    ] = None
    whatsapp_app_secret: Annotated[
        tuple[Secret, ...], Meta(description="signs webhooks, comma list; unset = webhooks off")
    ] = ()
    whatsapp_verify_token: Annotated[
        Secret | None, Meta(description="answers Meta's check of the webhook address")
    ] = None
    graph_connect_timeout_s: Annotated[
        float, Meta(ge=0.1, le=60, description="longest connect to Graph")
    ] = 5
    graph_timeout_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=300,
            description="from the request written to the whole answer; after it: `unknown`",
        ),
    ] = 30
    graph_keepalive_s: Annotated[
        float, Meta(ge=0, le=300, description="how long an idle connection to Graph is kept")
    ] = 15
    on_unknown: Annotated[
        Literal["hold", "resend"],
        Meta(description="of jobs that do not say: what to do when nobody knows if it was sent"),
    ] = "hold"
    phone_validation: Annotated[
        Literal["e164", "possible", "valid"],
        Meta(description="e164 checks the form and reports impossible numbers; others refuse"),
    ] = "e164"
    worker_slots: Annotated[
        int, Meta(ge=1, le=1000, description="claims at once per worker process")
    ] = 64
    worker_lease_ms: Annotated[
        int,
        Meta(
            ge=200,
            le=600_000,
            description="without a tick for this long a worker counts as dead; at least 10 ticks",
        ),
    ] = 10_000
    worker_tick_ms: Annotated[
        int, Meta(ge=10, le=10_000, description="between two signs of life of a worker")
    ] = 200
    worker_block_ms: Annotated[int, Meta(ge=1, le=2000, description="longest blocking read")] = 1000
    worker_grace_s: Annotated[
        float,
        Meta(
            ge=1,
            le=900,
            description="longest drain after SIGTERM; at least GRAPH_TIMEOUT_S + 5",
        ),
    ] = 35
    claim_deliveries_max: Annotated[
        int,
        Meta(
            ge=2,
            le=100,
            description="from the third one recipient at a time; at the limit reason `poison`",
        ),
    ] = 5
    outcomes_max: Annotated[
        int,
        Meta(
            ge=1000,
            le=100_000_000,
            description="outcomes waiting for PostgreSQL before release stops",
        ),
    ] = 200_000
    events_max: Annotated[
        int, Meta(ge=100, le=10_000_000, description="change notes kept; older are trimmed")
    ] = 20_000
    inbox_max: Annotated[
        int, Meta(ge=100, le=10_000_000, description="webhooks waiting; then 503")
    ] = 20_000
    job_ttl_s: Annotated[
        int,
        Meta(
            ge=1,
            le=31_536_000,
            description="a job's keys in Redis after PostgreSQL confirmed its end",
        ),
    ] = 86_400
    worker_rate: Annotated[
        float,
        Meta(ge=1, le=100_000, description="messages/s one worker is good for (wanted_workers)"),
    ] = 500
    target_drain_s: Annotated[
        float,
        Meta(ge=1, le=604_800, description="the backlog should be gone in (wanted_workers)"),
    ] = 600
    api_host: Annotated[
        str, Meta(min_length=1, description="address the API listens on; the image sets 0.0.0.0")
    ] = "127.0.0.1"
    api_port: Annotated[int, Meta(ge=0, le=65_535, description="0 = a free one")] = 3000
    public_url: Annotated[
        str, Meta(description="our origin: links, cookies, CSRF, error types")
    ] = "http://localhost:3000"
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(description="accepted Host headers; unset = that of PUBLIC_URL and loopback"),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], Meta(description="networks whose X-Forwarded-For counts, CIDR list")
    ] = ()
    bulk_submits_per_hour_ip: Annotated[
        int, Meta(ge=0, le=100_000, description="submissions per client address; 0 = off")
    ] = 10
    bulk_submits_per_hour_user: Annotated[
        int, Meta(ge=0, le=100_000, description="submissions per user; 0 = off")
    ] = 0
    api_requests_per_minute: Annotated[
        int, Meta(ge=0, le=1_000_000, description="requests per principal; 0 = off")
    ] = 600
    idempotency_ttl_s: Annotated[
        int, Meta(ge=86_400, le=31_536_000, description="how long an Idempotency-Key is kept")
    ] = 86_400
    body_max_bytes: Annotated[
        int, Meta(ge=1024, le=1_073_741_824, description="largest JSON body")
    ] = 8_388_608
    upload_max_bytes: Annotated[
        int, Meta(ge=1024, le=1_073_741_824, description="largest upload")
    ] = 33_554_432
    upload_ttl_s: Annotated[
        int, Meta(ge=60, le=31_536_000, description="how long an unused upload is kept")
    ] = 86_400
    header_timeout_s: Annotated[
        float, Meta(ge=0.1, le=600, description="longest time for a request's headers")
    ] = 10
    body_timeout_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="longest time for a request's body")
    ] = 30
    keepalive_s: Annotated[
        float, Meta(ge=0, le=3600, description="how long an idle client connection is kept")
    ] = 75
    connections_per_ip: Annotated[
        int, Meta(ge=1, le=100_000, description="open connections per client address")
    ] = 500
    session_idle_s: Annotated[
        int, Meta(ge=60, le=31_536_000, description="a session ends after this without a request")
    ] = 1800
    session_max_s: Annotated[
        int, Meta(ge=60, le=31_536_000, description="a session ends after this in any case")
    ] = 43_200
    login_failures: Annotated[
        int, Meta(ge=1, le=10_000, description="failed logins per account before it must wait")
    ] = 5
    login_window_s: Annotated[
        int, Meta(ge=1, le=86_400, description="window in which failed logins are counted")
    ] = 300
    login_failures_ip: Annotated[
        int, Meta(ge=1, le=100_000, description="failed logins per client address in the window")
    ] = 20
    sse_interval_ms: Annotated[
        int, Meta(ge=10, le=60_000, description="shortest time between two events of a job")
    ] = 250
    sse_heartbeat_s: Annotated[
        float, Meta(ge=0.1, le=300, description="a comment keeps a silent stream open")
    ] = 15
    sse_retry_ms: Annotated[
        int, Meta(ge=1, le=600_000, description="what a client is told to wait before it returns")
    ] = 2000
    sse_send_timeout_s: Annotated[
        float, Meta(ge=0.1, le=300, description="a client that reads nothing this long is cut off")
    ] = 10
    sse_per_user: Annotated[int, Meta(ge=1, le=100_000, description="streams at once per user")] = (
        20
    )
    sse_per_ip: Annotated[
        int, Meta(ge=1, le=100_000, description="streams at once per client address")
    ] = 100
    sse_jobs_max: Annotated[int, Meta(ge=1, le=10_000, description="jobs on one stream")] = 100
    metrics_host: Annotated[
        str,
        Meta(
            min_length=1,
            description="address of the management port; the image sets 0.0.0.0",
        ),
    ] = "127.0.0.1"
    metrics_port: Annotated[
        Annotated[int, Meta(ge=0, le=65_535)] | None,
        Meta(description="unset: 9464 for the api, 9465 for the worker; 0 = off"),
    ] = None
    metrics_token: Annotated[
        Secret | None, Meta(description="bearer token that /metrics and /scale ask for")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least level logged")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Meta(description="auto: console on a terminal, else one JSON object a line"),
    ] = "auto"
    logs_keep_days: Annotated[
        int, Meta(ge=0, le=36_500, description="campaign_logs older are purged; 0 = for ever")
    ] = 0
    audit_keep_days: Annotated[
        int, Meta(ge=0, le=36_500, description="audit entries older are purged; 0 = for ever")
    ] = 0
    drumbeat_home: Annotated[
        str, Meta(min_length=1, description="folder of the embedded servers' data")
    ] = ".demo"
    drumbeat_url: Annotated[str, Meta(description="where the client commands find the API")] = (
        "http://localhost:3000"
    )
    drumbeat_api_key: Annotated[Secret | None, Meta(description="key of the client commands")] = (
        None
    )
    drumbeat_exit_on_eof: Annotated[
        bool, Meta(description="set by `up` and `demo` for their children: leave with the parent")
    ] = False
    sandbox_admin_token: Annotated[
        Secret | None, Meta(description="opens the sandbox's admin paths; unset = open on loopback")
    ] = None
    warnings: tuple[str, ...] = ()

    @property
    def default_rate(self) -> float:
        """Return the rate of a sender without its own, messages per second; 0 = no limit."""
        if self.bulk_pause_ms == 0:
            return 0.0
        return self.bulk_batch_size * 1000 / self.bulk_pause_ms

    @property
    def is_sandbox(self) -> bool:
        """Tell whether messages go anywhere but to Meta."""
        return self.graph_base_url != META_GRAPH_URL

    @property
    def api_metrics_port(self) -> int:
        """Return the management port of an API process; 0 = off."""
        return API_METRICS_PORT if self.metrics_port is None else self.metrics_port

    @property
    def worker_metrics_port(self) -> int:
        """Return the management port of a worker; 0 = off."""
        return WORKER_METRICS_PORT if self.metrics_port is None else self.metrics_port

    @property
    def hosts(self) -> frozenset[str]:
        """Return the host names, without port, that a request may be addressed to."""
        if self.allowed_hosts:
            return frozenset(host.lower() for host in self.allowed_hosts)
        own = urlsplit(self.public_url).hostname or "localhost"
        return frozenset({own, "localhost", "127.0.0.1", "::1"})


_HINTS: Final = {
    name: hint
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    if name in Settings.__struct_fields__ and name != "warnings"
}
VARIABLES: Final = tuple(name.upper() for name in _HINTS)


def load(environ: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Settings:
    """Return the settings of this process.

    Args:
        environ: the environment; None reads this process's.
        dotenv: a file that fills in what the environment does not set; None reads none.

    Raises:
        SettingsError: a variable is unknown, does not parse or is out of range; the message
            names all such. The process must not start.
    """
    faults: list[str] = []
    given = dict(os.environ if environ is None else environ)
    if dotenv is not None:
        for name, value in _read_dotenv(dotenv, faults).items():
            base = name.removesuffix(_FILE)
            if base not in given and base + _FILE not in given:
                given[name] = value
    warnings = _strange_names(given, faults)
    values: dict[str, Any] = {}
    for name in VARIABLES:
        text = _text_of(name, given, faults)
        if text:
            _convert(name, text, values, faults)
    if not faults:
        settings = Settings(**values, warnings=tuple(warnings))
        faults = _disagreements(settings)
        if not faults:
            return settings
    raise SettingsError("\n".join(faults))


def parse_dotenv(text: str, faults: list[str], where: str = ".env") -> dict[str, str]:
    r"""Return the variables in the text of a `.env` file; add a sentence for each bad line.

    >>> parse_dotenv("export A=5   # five\r\nB='x # y'  \nC=a#b", [])
    {'A': '5', 'B': 'x # y', 'C': 'a#b'}
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.match(line)
        value = _unquote(match[2]) if match else None
        if match is None or value is None:
            faults.append(f"{where} line {number}: not of the form NAME=value")
        else:
            found[match[1]] = value
    return found


def _unquote(text: str) -> str | None:
    if text.startswith("'"):
        match = _SINGLE.match(text)
        return match[1] if match else None
    if text.startswith('"'):
        match = _DOUBLE.match(text)
        if match is None:
            return None
        return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], match[1])
    return re.split(r"(?:\A|\s+)#", text, maxsplit=1)[0].strip()


def _read_dotenv(path: Path, faults: list[str]) -> dict[str, str]:
    try:
        return parse_dotenv(path.read_text(encoding="utf-8-sig"), faults, str(path))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path}: cannot be read ({type(error).__name__})")
        return {}


def _strange_names(given: Mapping[str, str], faults: list[str]) -> list[str]:
    warnings = []
    for name in sorted(given):
        base = name.removesuffix(_FILE)
        if name in VARIABLES or base in VARIABLES:
            continue
        nearest = difflib.get_close_matches(base, VARIABLES, n=1, cutoff=0.0)[0]
        if name.startswith(_STRICT_PREFIX):
            faults.append(f"{name}: unknown variable; did you mean {nearest}?")
        elif name.startswith(_PREFIXES):
            warnings.append(f"{name} is not a variable of ours; the nearest is {nearest}")
    return warnings


def _text_of(name: str, given: Mapping[str, str], faults: list[str]) -> str:
    text, file = given.get(name, ""), given.get(name + _FILE, "")
    if not file:
        return text.strip()
    if text:
        faults.append(f"{name}: given twice, by {name} and by {name}{_FILE}")
        return ""
    try:
        content = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{name}{_FILE}: {file} cannot be read ({type(error).__name__})")
        return ""
    return content.removesuffix("\n").removesuffix("\r")


def _convert(name: str, text: str, values: dict[str, Any], faults: list[str]) -> None:
    hint = _HINTS[name.lower()]
    kind = get_args(hint)[0]
    value: object = text
    if kind is bool:
        value = _BOOLEANS.get(text.lower(), text.lower())
    elif get_origin(kind) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif get_origin(kind) is Literal:
        value = text.lower()
    elif name.endswith("_URL") and kind is str:
        value = text.rstrip("/")
    try:
        values[name.lower()] = msgspec.convert(value, hint, strict=False, dec_hook=_wrap)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at ")[0]
        faults.append(f"{name}: {reason[:1].lower()}{reason[1:]}")


def _wrap(kind: type, value: object) -> object:
    if kind in {Secret, StoreUrl} and isinstance(value, str):
        return kind(value)
    raise NotImplementedError(kind)


def _disagreements(s: Settings) -> list[str]:
    rules = (
        (
            s.redis_url is None or s.redis_url.startswith(_REDIS_SCHEMES),
            f"REDIS_URL: must begin with one of {', '.join(_REDIS_SCHEMES)}",
        ),
        (
            s.database_url is None or s.database_url.startswith(("postgresql://", "postgres://")),
            "DATABASE_URL: must begin with postgresql://",
        ),
        (
            all(len(key.reveal().encode()) >= _KEY_BYTES_MIN for key in s.bulk_secret_key),
            f"BULK_SECRET_KEY: every key needs at least {_KEY_BYTES_MIN} bytes",
        ),
        (
            s.worker_lease_ms >= _TICKS_PER_LEASE * s.worker_tick_ms,
            f"WORKER_LEASE_MS: must be at least {_TICKS_PER_LEASE} times WORKER_TICK_MS",
        ),
        (
            s.worker_grace_s >= s.graph_timeout_s + _GRACE_MARGIN_S,
            f"WORKER_GRACE_S: must be at least GRAPH_TIMEOUT_S + {_GRACE_MARGIN_S}",
        ),
        (
            s.session_max_s >= s.session_idle_s,
            "SESSION_MAX_S: must be at least SESSION_IDLE_S",
        ),
        (
            s.session_idle_s >= _BEATS_PER_IDLE * s.sse_heartbeat_s,
            f"SESSION_IDLE_S: must be at least {_BEATS_PER_IDLE} times SSE_HEARTBEAT_S",
        ),
        (
            (s.whatsapp_phone_number_id is None) == (s.whatsapp_access_token is None),
            "WHATSAPP_ACCESS_TOKEN: goes together with WHATSAPP_PHONE_NUMBER_ID",
        ),
        (
            s.whatsapp_access_token is None or _TOKEN.match(s.whatsapp_access_token.reveal()),
            "WHATSAPP_ACCESS_TOKEN: must be of printable ASCII without blanks, it ends a header",
        ),
        (_is_origin(s.public_url), "PUBLIC_URL: must be an origin such as https://example.org"),
        (_is_origin(s.drumbeat_url), "DRUMBEAT_URL: must be an origin such as https://example.org"),
        (_is_http(s.graph_base_url), "GRAPH_BASE_URL: must be an http or https address"),
        (
            _is_near(s.public_url),
            "PUBLIC_URL: must begin with https:// unless it is this machine's own",
        ),
        (
            _is_near(s.graph_base_url, names=True),
            "GRAPH_BASE_URL: must begin with https:// unless the sandbox is near",
        ),
        (
            all(map(_is_network, s.trusted_proxies)),
            "TRUSTED_PROXIES: every entry must be a network such as 10.0.0.0/8, none of them all",
        ),
    )
    return [sentence for holds, sentence in rules if not holds]


def _is_http(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_origin(text: str) -> bool:
    if not _is_http(text):
        return False
    parts = urlsplit(text)
    return not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)


def _is_near(text: str, *, names: bool = False) -> bool:
    """Tell whether plain http is harmless: loopback, or with `names` a container's bare name."""
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname:
        return True  # another rule speaks
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return parts.hostname == "localhost" or (names and "." not in parts.hostname)


def _is_network(text: str) -> bool:
    try:
        return ipaddress.ip_network(text, strict=False).prefixlen > 0
    except ValueError:
        return False


def table() -> str:
    """Return the variables as a Markdown table, in the order of the struct."""
    lines = ["| variable | default | range | meaning |", "|---|---|---|---|"]
    for name, hint in _HINTS.items():
        kind, *metas = get_args(hint)
        meta = metas[0]
        default = Settings.__struct_defaults__[Settings.__struct_fields__.index(name)]
        lines.append(
            f"| {name.upper()} | {_shown(default)} | {_range_of(kind, meta)} | {meta.description} |"
        )
    return "\n".join(lines) + "\n"


def example() -> str:
    """Return a `.env` with every variable, each commented out with its default."""
    lines = ["# Every variable may also be given as NAME_FILE, a path to its value."]
    for name, hint in _HINTS.items():
        kind, meta, *_ = get_args(hint)
        default = Settings.__struct_defaults__[Settings.__struct_fields__.index(name)]
        span = _range_of(kind, meta)
        lines += ["", f"# {meta.description}{f' ({span})' if span else ''}"]
        shown = "" if default in (None, ()) else _shown(default)
        lines.append(f"#{name.upper()}={shown}")
    return "\n".join(lines) + "\n"


def _shown(default: object) -> str:
    if default is None or default == ():
        return "-"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _range_of(kind: object, meta: Meta) -> str:
    for part in get_args(kind):
        if get_origin(part) is Annotated:
            return _range_of(*get_args(part))
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if kind is bool:
        return "true, false"
    if get_origin(kind) is tuple:
        return "comma list"
    if meta.ge is None:
        return ""
    return f"{meta.ge:,} to {meta.le:,}"
