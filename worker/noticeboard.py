"""Carries out what Meta tells of templates and accounts: of two notices the later counts."""

from __future__ import annotations

from typing import Final

from shared.logs import get
from shared.metrics import WorkerMetrics
from shared.notices import Notices
from shared.templates import Templates
from worker.notices import OPENED, Notice
from worker.scopes import Scopes
from worker.senders import Senders

_log: Final = get("worker.notices")


class Noticeboard:
    """Takes notices, repeated and in any order as they come.

    Args:
        notices: the last one about each subject.
        templates: whose lists are old after a notice about a template.
        scopes: pauses and opens.
        senders: which accounts are ours.
        metrics: of this worker.
    """

    def __init__(
        self,
        notices: Notices,
        templates: Templates,
        scopes: Scopes,
        senders: Senders,
        metrics: WorkerMetrics,
    ) -> None:
        """Borrow the doors."""
        self._notices = notices
        self._templates = templates
        self._scopes = scopes
        self._senders = senders
        self._metrics = metrics

    async def take(self, notice: Notice) -> bool:
        """Carry a notice out; False: its account is not ours.

        Raises:
            ArchiveError, QueueError: not all of it; it may be taken again.
        """
        if not self._senders.rows_of_waba(notice.waba_id):
            # A sender may have got its account just now.
            await self._senders.refresh()
            if not self._senders.rows_of_waba(notice.waba_id):
                return False
        if notice.is_of_template:
            await self._templates.ask(notice.waba_id)
        is_news = await self._once(notice)
        action = notice.action if is_news else "old"
        self._metrics.notices_total.labels(notice.field, action).inc()
        if is_news:
            tell = {"info": _log.info, "warning": _log.warning, "error": _log.error}[notice.level]
            tell(
                "notice.taken",
                field=notice.field,
                waba=notice.waba_id,
                said=notice.event,
                action=notice.action,
                template=f"{notice.name}:{notice.language}" if notice.name else None,
            )
        return True

    async def _once(self, notice: Notice) -> bool:
        if not notice.subject:
            return True
        return await self._notices.once(
            notice.waba_id,
            notice.subject,
            notice.at_s,
            notice.event,
            lambda: self._carry_out(notice),
        )

    async def _carry_out(self, notice: Notice) -> None:
        waba_id, name, language = notice.waba_id, notice.name, notice.language
        if notice.action == "pause_template":
            await self._scopes.pause_template(waba_id, name, language, notice.why)
        elif notice.action == "open_template":
            await self._scopes.open_template(waba_id, name, language, OPENED)
        elif notice.action == "pause_account":
            await self._scopes.pause_account(waba_id, notice.why)
