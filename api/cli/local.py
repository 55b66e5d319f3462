"""`drumbeat demo` and `drumbeat up`: the whole system on this machine, started as children."""

from __future__ import annotations

import asyncio
import csv
import http.client
import json
import os
import shlex
import signal
import sys
import urllib.error
import urllib.request
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from shared.archive import Archive
from shared.clock import Clock
from shared.connect import open_postgres
from shared.embedded.children import Child, ChildError, free_port, is_open, reap
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.errors import SettingsError
from shared.ids import Ids
from shared.settings import Settings, load

EMAIL: Final = "admin@localhost"
_READY_S: Final = 30
_TOLD: Final = ("REDIS_URL", "DATABASE_URL", "BULK_SECRET_KEY", "GRAPH_BASE_URL", "PUBLIC_URL")
_BACKOFF_MAX_S: Final = 10.0
_FINAL: Final = ("completed", "cancelled")
_say: Final = Console(stderr=True, highlight=False)


class Local:
    """Servers, sandbox, API and workers, each a child of this process.

    Args:
        settings: as the servers read them, from the environment and `.env`.
        port: of the API; taken: another one, and it is said.
        env: variables for the children, above those that they read themselves.
    """

    def __init__(self, settings: Settings, port: int, env: dict[str, str]) -> None:
        """Start nothing yet."""
        home = Path(settings.drumbeat_home)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home = home.resolve()
        self._settings = settings
        self.port = free_port(port)
        if port not in (0, self.port):
            _say.print(f"port {port} is taken; this is {self.port}")
        self.url = f"http://localhost:{self.port}"
        self.user_id = ""
        self.children: list[Child] = []
        self.workers: list[Child] = []
        self.ledger = self.home / f"ledger-{os.getpid()}.jsonl"
        self._valkey: Valkey | None = None
        self._postgres: Postgres | None = None
        self._clock = Clock()
        self._kept = self._secrets()
        self._given: dict[str, str] = {}
        # They get the environment as it came and read `.env` themselves.
        self.env = dict(os.environ)  # noqa: TID251 - see above
        self._set(
            API_PORT=str(self.port),
            BULK_SUBMITS_PER_HOUR_IP="0",
            DRUMBEAT_EXIT_ON_EOF="1",
            PYTHONUNBUFFERED="1",
            **env,
        )
        if not settings.bulk_secret_key:
            self._set(BULK_SECRET_KEY=self._kept["secret"])
        # The name of a site that is before us stays; an origin of this machine follows the port.
        if not settings.public_url.startswith("https://"):
            self._set(PUBLIC_URL=self.url)

    @property
    def password(self) -> str:
        """Return the admin's password; it is good on this machine only."""
        return self._kept["password"]

    def _set(self, **values: str) -> None:
        """Set variables of the children, and drop the other way each may have been given."""
        self.env.update(values)
        self._given |= values
        for name in values:
            self.env.pop(f"{name}_FILE", None)

    def _secrets(self) -> dict[str, str]:
        path = self.home / "secrets.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        made = {"secret": Ids().token(), "password": Ids().token(9)}
        path.touch(mode=0o600)
        path.write_text(json.dumps(made))
        return made

    def _write_variables(self, **more: str) -> None:
        """Write what other commands need to find this system: `set -a; . .demo/env`."""
        told = {name: self._given[name] for name in _TOLD if name in self._given} | more
        path = self.home / "env"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={shlex.quote(v)}\n" for name, v in told.items()))

    async def start(
        self, workers: int, sandbox: list[str] | None, *, has_webhooks: bool = False
    ) -> None:
        """Start everything; return when the API takes requests and the workers are ready.

        Args:
            workers: how many.
            sandbox: words for the pretended Graph; None = real messages.
            has_webhooks: it says what becomes of each message.
        """
        places = (self.home, self.home / "valkey", self.home / "postgres")
        for name in [name for place in places for name in await reap(place)]:
            _say.print(f"ended {name}, left over from an earlier run")
        await asyncio.gather(self._start_valkey(), self._start_postgres())
        await self._run("shared.migrate")
        self.user_id = (await self._run("api.cli.seed", EMAIL, stdin=self.password)).strip()
        if sandbox is not None:
            port = free_port()
            self._set(GRAPH_BASE_URL=f"http://127.0.0.1:{port}")
            if self._settings.whatsapp_phone_number_id is None and not await self._has_sender():
                self._set(
                    WHATSAPP_PHONE_NUMBER_ID="100000000000001",
                    WHATSAPP_BUSINESS_ACCOUNT_ID="100000000000002",
                    WHATSAPP_ACCESS_TOKEN="sandbox-token",  # noqa: S106 - the sandbox takes any
                )
            words = ["--port", str(port), "--ledger", str(self.ledger), *sandbox]
            if has_webhooks:
                words += ["--webhook", f"{self.url}/webhooks/whatsapp"]
                if not self._settings.whatsapp_app_secret:
                    self._set(WHATSAPP_APP_SECRET=Ids().token())
            await self._listening(self._child("sandbox", "worker.sandbox", words), port)
        metrics = str(free_port())
        self._write_variables(DRUMBEAT_URL=self.url, METRICS_PORT=metrics)
        api = self._child("api", "api", METRICS_PORT=metrics)
        ports = [free_port() for _ in range(workers)]
        for number, port in enumerate(ports, 1):
            child = self._child(f"worker-{number}", "worker", METRICS_PORT=str(port))
            self.workers.append(child)
        await self._listening(api, self.port)
        # By then the sender of WHATSAPP_* is stored: until then a job is refused for want of one.
        for child, port in zip(self.workers, ports, strict=True):
            await self._listening(child, port)

    async def stop(self) -> None:
        """Stop the processes, then the servers."""
        await asyncio.gather(*(child.stop() for child in self.children))
        servers = [server for server in (self._valkey, self._postgres) if server is not None]
        await asyncio.gather(*(server.stop() for server in servers))

    async def watch(self) -> None:
        """Restart what dies, later each time; never return."""
        pause: Counter[str] = Counter()
        while True:
            await self._clock.sleep(0.5)
            for child in self.children:
                if child.is_running:
                    continue
                wait = min(_BACKOFF_MAX_S, 0.5 * 2.0 ** pause[child.name])
                pause[child.name] += 1
                _say.print(
                    f"{child.name} ended ({child.exit_code}); again in {wait:g} s: {child.log}"
                )
                await self._clock.sleep(wait)
                child.start()

    def show_way_in(self) -> None:
        """Print address, login, user id and four commands that work when pasted."""
        jar = self.home / "cookies.txt"
        login = json.dumps({"email": EMAIL, "password": self.password})
        text = {"kind": "text", "text": {"body": "Hello from Prime SMS!", "preview_url": False}}
        to = ["+15550000001", "+15550000002", "+15550000003"]
        body = json.dumps({"userId": self.user_id, "recipients": to, "message": text})
        kind = "-H 'Content-Type: application/json'"
        follow = "$(cat " + str(self.home / "job") + ")"
        lines = (
            f"  address   {self.url}\n  login     {EMAIL}   password  {self.password}\n"
            f"  user id   {self.user_id}\n\n"
            f"  curl -sc {jar} {kind} -d '{login}' {self.url}/api/session\n"
            f"  curl -sb {jar} {kind} -d '{body}' {self.url}/api/bulk/send"
            f' | tee /dev/stderr | sed \'s/.*"jobId":"\\([^"]*\\).*/\\1/\' > {self.home}/job\n'
            f"  curl -Nsb {jar} {self.url}/realtime/bulk/{follow}\n"
            f"  curl -sb {jar} {self.url}/api/bulk/stats\n"
        )
        sys.stdout.write("\n" + lines + "\n")
        sys.stdout.flush()

    async def _start_valkey(self) -> None:
        if self._settings.redis_url is None:
            self._valkey = Valkey(self.home / "valkey")
            await self._valkey.start()
            self._set(REDIS_URL=self._valkey.url)

    async def _start_postgres(self) -> None:
        if self._settings.database_url is None:
            if os.geteuid() == 0:
                # PostgreSQL runs as uid 65534 then, and must pass; nobody else may.
                os.chown(self.home, 0, 65534)
                self.home.chmod(0o710)
            self._postgres = Postgres(self.home / "postgres")
            await self._postgres.start()
            self._set(DATABASE_URL=self._postgres.url)

    async def _has_sender(self) -> bool:
        """Tell whether a database of the user's own has a sender `default`: it stays his."""
        if self._settings.database_url is None:
            return False
        pool = await open_postgres(self._settings, size=1)
        try:
            return await Archive(pool).sender_by_name_or_id("default") is not None
        finally:
            await pool.close()

    async def _run(self, module: str, *words: str, stdin: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.env,
        )
        try:
            out, err = await process.communicate(stdin.encode())
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise ChildError(f"{module} failed:\n{err.decode(errors='replace')}")
        return out.decode()

    def _child(self, name: str, module: str, words: list[str] | None = None, **env: str) -> Child:
        command = [sys.executable, "-m", module, *(words or [])]
        child = Child(name, command, self.home, {**self.env, **env})
        child.start()
        self.children.append(child)
        return child

    async def _listening(self, child: Child, port: int) -> None:
        end = self._clock.monotonic() + _READY_S
        while not is_open(port):
            if not child.is_running or self._clock.monotonic() > end:
                raise ChildError(f"{child.name} did not start:\n{child.tail()}")
            await self._clock.sleep(0.05)


class _Api:
    """As much of the API's other end as a demo needs."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._cookie = ""

    async def ask(self, path: str, body: object = None) -> dict[str, Any]:
        """Send one request in a thread; return the document, or raise with the problem's text."""
        return await asyncio.to_thread(self._ask, path, body)

    def _ask(self, path: str, body: object) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data)  # noqa: S310 - our own origin
        request.add_header("Content-Type", "application/json")
        request.add_header("Cookie", self._cookie)
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:  # noqa: S310 - as above
                self._cookie = (answer.headers["Set-Cookie"] or self._cookie).partition(";")[0]
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            raise ChildError(f"{path}: {error.code} {error.read().decode()}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ChildError(f"{path}: {error}") from error


def recipients(count: int) -> list[str]:
    """Return `count` numbers of the demo's CSV, which ships with the program."""
    with (files("api.cli") / "demo.csv").open(encoding="utf-8") as file:
        phones = [row["phone"] for row in csv.DictReader(file)]
    return phones[:count]


async def _campaign(local: Local, count: int, rate: float) -> int:
    api = _Api(f"http://127.0.0.1:{local.port}")
    await api.ask("/api/session", {"email": EMAIL, "password": local.password})
    message = {"kind": "text", "text": {"body": "Hello from the Drumbeat demo"}}
    order = {"recipients": recipients(count), "message": message, "name": "demo", "rate": rate}
    job_id = (await api.ask("/api/bulk/send", order))["jobId"]
    clock = Clock()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    has_killed = False
    with Progress(*columns, TimeElapsedColumn(), console=_say) as bar:
        task = bar.add_task(job_id, total=count, note="")
        while True:
            job = await api.ask(f"/api/bulk/jobs/{job_id}")
            told = job["progress"]
            bar.update(task, completed=told["done"], note=f"{told['rate']:.0f}/s")
            if job["state"] in _FINAL:
                break
            if not has_killed and told["done"] * 2 >= told["total"]:
                has_killed = True
                await local.workers[0].kill()
                bar.print(f"killed worker-1 with kill -9 at {told['done']} of {told['total']}")
            await clock.sleep(0.2)
    return _summary(local, job, rate)


def _summary(local: Local, job: dict[str, Any], rate: float) -> int:
    told = job["progress"]
    lines = [json.loads(line) for line in local.ledger.read_text().splitlines()]
    taken = [line for line in lines if line["verdict"] == "accepted"]
    sent = Counter(line["delivered"] for line in taken)
    times = sorted(line["t_ms"] for line in taken)
    span_s = (times[-1] - times[0]) / 1000 if len(times) > 1 else 0.0
    duplicates = sum(1 for number in sent.values() if number > 1)
    reasons = ", ".join(f"{n} x {code}" for code, n in told["by_code"].items()) or "none"
    done = sum(told[name] for name in ("sent", "failed", "skipped", "cancelled", "unknown"))
    held = f"{len(times) / span_s:.0f}/s" if span_s else "-"
    sys.stdout.write(
        f"\n  sent        {told['sent']} of {told['total']}\n"
        f"  failed      {told['failed']} ({reasons})\n"
        f"  unknown     {told['unknown']}  in the killed worker's hands: Graph may have them,\n"
        f"              so they are not sent a second time\n"
        f"  rate        asked {rate:g}/s, held {held}\n"
        f"  duplicates  {duplicates} in the sandbox's ledger\n"
    )
    is_exact = done == told["total"] and not duplicates and told["sent"] <= sum(sent.values())
    return 0 if is_exact else 1


async def _until_told(work: asyncio.Task[int]) -> int:
    """Wait for `work`; SIGINT and SIGTERM cancel it."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        _say.print("stopped; go on with `make up`")
        return 130


async def _demo(local: Local, count: int, rate: float, fail: str, *, keep: bool) -> int:
    sandbox = ["--rate", str(rate * 1.5), "--latency", "80", "--fail", fail, "--no-pair-limit"]
    try:
        await local.start(2, sandbox)
        code = await _campaign(local, count, rate)
        local.show_way_in()
        if keep:
            await local.watch()
        else:
            sys.stdout.write("  `make up` starts it again and keeps it running\n")
        return code
    finally:
        await local.stop()


def demo(
    *,
    recipients: int = 2000,
    rate: float = 400,
    fail: str = "2%",
    port: int | None = None,
    keep: bool = False,
) -> int:
    """Start everything, send a demo campaign, kill a worker half way, sum up.

    Args:
        recipients: how many, at most 2,000.
        rate: messages per second.
        fail: share of numbers that the sandbox refuses.
        port: of the API; API_PORT.
        keep: go on running afterwards.
    """
    settings = load()
    if settings.disable_bulk_messaging:
        raise SettingsError("DISABLE_BULK_MESSAGING: is set, so the demo would send nothing")
    pause_ms = round(settings.bulk_batch_size * 1000 / rate)
    env = {"WORKER_LEASE_MS": "3000", "BULK_PAUSE_MS": str(pause_ms)}
    local = Local(settings, settings.api_port if port is None else port, env)
    work = _demo(local, recipients, rate, fail, keep=keep)
    return asyncio.run(_guarded(work))


async def _guarded(work: Any) -> int:  # noqa: ANN401 - a coroutine of int
    return await _until_told(asyncio.create_task(work))


async def _up(local: Local, workers: int, sandbox: list[str] | None) -> int:
    try:
        await local.start(workers, sandbox, has_webhooks=True)
        local.show_way_in()
        _say.print("no limit on submissions an hour here: BULK_SUBMITS_PER_HOUR_IP=0; Ctrl-C stops")
        await local.watch()
    finally:
        await local.stop()
    return 0


def up(*, workers: int = 2, port: int | None = None, sandbox: bool = True) -> int:
    """Run the whole system until Ctrl-C; what dies is restarted.

    Args:
        workers: how many processes.
        port: of the API; API_PORT.
        sandbox: send to the pretend Graph API; `--no-sandbox` sends real messages.
    """
    settings = load()
    local = Local(settings, settings.api_port if port is None else port, {})
    if settings.disable_bulk_messaging:
        _say.print("DISABLE_BULK_MESSAGING is set: jobs are refused and nothing is sent")
    words = ["--no-pair-limit"] if sandbox else None
    return asyncio.run(_guarded(_up(local, workers, words)))
