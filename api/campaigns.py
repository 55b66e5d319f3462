"""A campaign's totals: the jobs that carry one label, added up."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from aiohttp import web

from api import auth, wire
from api.auth import principal
from api.owned import answer
from api.resources import resources
from api.router import Route, query_of
from shared.errors import NotFoundError
from shared.results import CampaignRow

LABEL: Final = re.compile(r"\A[A-Za-z0-9._:-]{1,128}\Z")


class CampaignNumbers(msgspec.Struct, frozen=True):
    """Recipients of all jobs; `pending` are those without an outcome, `done` those with one."""

    total: int
    pending: int
    done: int
    sent: int
    failed: int
    skipped: int
    cancelled: int
    unknown: int
    delivered: int
    read: int
    undelivered: int


class Campaign(msgspec.Struct, frozen=True, rename={"campaign_id": "campaignId"}):
    """A label's jobs by state, and their recipients, as of what is logged."""

    campaign_id: str
    jobs: dict[str, int]
    progress: CampaignNumbers
    first_at: str
    last_at: str


def campaign_of(campaign_id: str, rows: list[CampaignRow]) -> Campaign:
    """Return the totals of at least one row."""

    def total(name: str) -> int:
        return sum(getattr(row, name) for row in rows)

    done = sum(total(name) for name in ("sent", "failed", "skipped", "cancelled", "unknown"))
    return Campaign(
        campaign_id,
        {row.state: row.jobs for row in sorted(rows, key=lambda row: row.state)},
        CampaignNumbers(
            total=total("total"),
            pending=total("total") - done,
            done=done,
            sent=total("sent"),
            failed=total("failed"),
            skipped=total("skipped"),
            cancelled=total("cancelled"),
            unknown=total("unknown"),
            delivered=total("delivered"),
            read=total("read"),
            undelivered=total("undelivered"),
        ),
        wire.time_text(min(row.first_ms for row in rows)) or "",
        wire.time_text(max(row.last_ms for row in rows)) or "",
    )


async def show_campaign(request: web.Request) -> web.Response:
    """GET /api/bulk/campaigns/{campaignId}: an admin's over everybody's jobs with the label."""
    made, asker = resources(request), principal(request)
    query_of(request)
    campaign_id = request.match_info["campaign_id"]
    if not LABEL.match(campaign_id):
        raise NotFoundError
    rows = await made.results.campaign(campaign_id, asker.owner)
    if not rows:
        raise NotFoundError
    return answer(campaign_of(campaign_id, rows))


ROUTES: Final = (
    Route("GET", "/api/bulk/campaigns/{campaign_id}", show_campaign, auth.READ, "jobs"),
)
