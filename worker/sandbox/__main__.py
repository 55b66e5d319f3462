"""`python -m worker.sandbox`: run the pretended Graph until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from ipaddress import ip_address
from pathlib import Path

import uvloop

from shared.clock import Clock
from shared.errors import SettingsError
from shared.ids import Ids
from shared.lifeline import watch_stdin
from shared.settings import load
from worker.sandbox.app import Sandbox
from worker.sandbox.behaviour import Behaviour, Config
from worker.sandbox.ledger import Ledger
from worker.sandbox.statuses import Hooks, Webhooks


def _share(text: str) -> float:
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("a share lies between 0% and 100%")
    return value


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="drumbeat sandbox", description="A pretended Graph API.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=0, help="0 picks a free one")
    add("--ledger", type=Path, default=Path("sandbox-ledger.ndjson"), help="file of the ledger")
    add("--no-fsync", action="store_true", help="answer before the ledger is on disk")
    add("--rate", type=float, default=80.0, help="messages per second of a number; 0 = no limit")
    add("--burst", type=_seconds, default=0.1, help="share of the rate at once, such as 0.1s")
    add("--latency", type=float, default=80.0, help="median answer time, ms; 0 = at once")
    add("--latency-p99", type=float, default=0.0, help="99th percentile, ms; 0 = 5 x median")
    add("--fail", type=_share, default=0.0, help="share of numbers refused with 131026")
    add("--seed", type=int, default=1, help="makes failures and answer times repeatable")
    add("--window", choices=("open", "strict"), default="open", help="free text without a window")
    add("--no-suffix-faults", action="store_true", help="no faults by the last four digits")
    add("--no-pair-limit", action="store_true", help="no limit per recipient")
    add("--token", action="append", default=[], help="the only tokens taken; repeatable")
    add("--phone-number-id", action="append", default=[], help="number of the token before it")
    add(
        "--webhook",
        default="",
        help="address told what becomes of messages; signs with the first of WHATSAPP_APP_SECRET",
    )
    return parser.parse_args(arguments)


def _config(asked: argparse.Namespace) -> Config:
    numbers = asked.phone_number_id + [""] * len(asked.token)
    return Config(
        rate=asked.rate,
        burst_s=asked.burst,
        latency_ms=asked.latency,
        latency_p99_ms=asked.latency_p99,
        fail=asked.fail,
        seed=asked.seed,
        window=asked.window,
        suffix_faults=not asked.no_suffix_faults,
        pair_limit=not asked.no_pair_limit,
        numbers=asked.phone_number_id,
        tokens=dict(zip(asked.token, numbers, strict=False)),
    )


async def run(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or, under a parent that asked for it, end of input."""
    asked = _arguments(arguments)
    try:
        settings = load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    # None asks nothing; an empty token, off loopback, opens to nobody.
    admin_token = settings.sandbox_admin_token.reveal() if settings.sandbox_admin_token else None
    if admin_token is None and asked.host != "localhost":
        admin_token = None if ip_address(asked.host).is_loopback else ""
    ledger = Ledger(asked.ledger, fsync=not asked.no_fsync)
    behaviour = Behaviour(_config(asked))
    clock, ids = Clock(), Ids(asked.seed)
    secret = settings.whatsapp_app_secret[0].reveal() if settings.whatsapp_app_secret else ""
    webhooks = Webhooks(Hooks(url=asked.webhook), secret, clock, Ids(asked.seed))
    sandbox = Sandbox(behaviour, ledger, clock, ids, admin_token, webhooks)
    await sandbox.listen(asked.host, asked.port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.drumbeat_exit_on_eof:
        watch_stdin(stop.set)
    sys.stdout.write(f"sandbox listening on http://{asked.host}:{sandbox.port}\n")
    sys.stdout.flush()
    token = settings.whatsapp_verify_token
    checking = asyncio.create_task(_verify(webhooks, token.reveal() if token else ""))
    await stop.wait()
    checking.cancel()
    await sandbox.close()
    return 0


async def _verify(webhooks: Webhooks, token: str) -> None:
    """Say whether the address of the webhooks knows the token that was agreed on."""
    if webhooks.hooks.url and token:
        word = "is verified" if await webhooks.verify(token) else "does not know the verify token"
        sys.stdout.write(f"webhook address {word}\n")
        sys.stdout.flush()


def main() -> None:
    """Run on uvloop and leave with its exit status."""
    sys.exit(uvloop.run(run()))


if __name__ == "__main__":
    main()
