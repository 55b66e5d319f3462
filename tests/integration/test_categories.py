"""A wish for no marketing stops marketing, and what may be marketing; nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from shared.archive import SenderRow
from shared.clock import Clock
from shared.models import Reason
from shared.office import Act, Office
from shared.sealing import Sealing
from shared.settings import Settings
from shared.templates import Templates
from tests.integration.test_worker import Bench, bench, made

__all__ = ["bench", "made"]
Eventually = Callable[..., Awaitable[Any]]
ANN, BEN = 15550000001, 15550000002
OFFER = msgspec.json.encode(
    {"kind": "template", "template": {"name": "order_update", "language_code": "en_US",
     "components": [{"type": "body", "parameters": [{"type": "text", "text": "7"}]}]}}
)  # fmt: skip
SEEN_MS = 2_000  # an entry committed so long before a start is honoured


async def test_a_wish_for_no_marketing_stops_marketing_alone(
    bench: Bench, eventually: Eventually
) -> None:
    act = Act("cli", "suppression.add", f"sup_{'0' * 26}")
    await Office(bench.archive._pool).suppress(act, ANN, "marketing", "", "test")
    start_ms = Clock().now_ms() + SEEN_MS
    jobs = {
        category: await bench.submit(
            [ANN, BEN], message=OFFER, category=category, scheduled_ms=start_ms
        )
        for category in ("UTILITY", "AUTHENTICATION", "MARKETING", "")
    }
    for category, job in jobs.items():
        await eventually(lambda job=job: bench.is_over(job), within_s=20)
        status = await bench.status(job)
        skipped = int(category in ("MARKETING", ""))
        assert (status.tally.sent, status.tally.skipped) == (2 - skipped, skipped)
        assert status.reasons.get(Reason.SUPPRESSED, 0) == skipped
    assert bench.requests() == {f"+{ANN}": 2, f"+{BEN}": 4}


async def test_a_worker_fetches_the_list_of_a_new_account(
    bench: Bench, settings: Settings, eventually: Eventually
) -> None:
    sealed = Sealing(settings.bulk_secret_key).seal("token")
    await bench.archive.add_sender(SenderRow("snd_new", "new", "1003", sealed, waba_id="77"))
    templates = Templates(bench.archive._pool)

    async def is_read() -> bool:
        return bool((await templates.state("77")).synced_ms)

    await eventually(is_read, within_s=10)
    assert len(await templates.page("77", 0, 100)) == 4
