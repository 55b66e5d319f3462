"""The results as Markdown: a page of tables, and the README's block. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.bench.figures import (
    BULLMQ,
    SAQ,
    THIN,
    Part,
    Results,
    Round,
    is_ours,
    median,
    workers,
)

START: Final = "<!-- measured: written by `make bench` -->"
END: Final = "<!-- /measured -->"
NOT_RUN: Final = "not run"
_CPU, _VALKEY = "worker_cpu_s_per_1000", "valkey_cpu_s_per_1000"


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        title: its head.
        figure: whose median it shows.
        form: how the number is written.
    """

    title: str
    figure: str
    form: str = ".3f"


class Table(NamedTuple):
    """How one part is shown.

    Attributes:
        title: heading above it.
        told: what is measured, in sentences.
        columns: after the first, which names the contender.
        plots: names of the pictures below it.
    """

    title: str
    told: str
    columns: tuple[Column, ...]
    plots: tuple[str, ...] = ()


_SENT: Final = (
    Column("worker, CPU s per 1,000", _CPU),
    Column("Valkey, CPU s per 1,000", _VALKEY),
    Column("PostgreSQL, CPU s per 1,000", "postgres_cpu_s_per_1000"),
    Column("commands a message", "commands_per_message", ".2f"),
    Column("messages/s", "rate", ",.0f"),
    Column("worker, MB", "rss_mb", ".0f"),
)
TABLES: Final[dict[str, Table]] = {
    "worker": Table(
        "A message, flat out",
        "One worker process, a far side that answers at once, a message a recipient, its id kept "
        "by each contender's own means. Drumbeat has limiter, records, events, metrics and archive "
        "on. Commands are those of Valkey, the ones inside scripts too.",
        _SENT,
        ("worker",),
    ),
    "commands": Table(
        "Commands for a message",
        "One worker, flat out, MONITOR on: what clients sent, all processes and the log writer "
        "counted, and what scripts did with it on the server.",
        (
            Column("sent", "sent_per_message"),
            Column("inside scripts", "inside_per_message", ".2f"),
        ),
    ),
    "paced": Table(
        "1,000 messages a second, answered after 100 ms",
        "Drumbeat and BullMQ are told the rate, the others have no limiter and give what they can. "
        "CPU s per 1,000 messages is the share of a core that 1,000 a second take.",
        (Column("core at 1,000/s", "core_at_1000_per_s"), *_SENT[1:]),
        ("paced",),
    ),
    "most": Table(
        "The most of one process at 100 ms",
        "No rate, 1,280 requests at once (BULK_CONCURRENCY=20; BullMQ's concurrency).",
        (Column("messages/s", "rate", ",.0f"), *_SENT[:2]),
    ),
    "accept": Table(
        "Accepting 50,000",
        "From the first byte of the POST to the whole of the 202, which says that every recipient "
        "is committed in PostgreSQL; BullMQ: one `addBulk`.",
        (
            Column("seconds", "accept_s"),
            Column("CPU s", "cpu_s"),
            Column("its event loop late by, s", "loop_late_s"),
        ),
    ),
    "queued": Table(
        "A recipient that waits",
        "Growth of Valkey's `used_memory` by recipient.",
        (Column("bytes", "bytes_per_recipient", ",.1f"),),
        ("queued",),
    ),
    "recovery": Table(
        "kill -9 half way",
        "5,000 messages at 100 ms, the only worker killed half way, a new one in its place, all "
        "defaults, nothing else queued: seconds until nobody is owed an answer. What Drumbeat "
        "cannot know about is `unknown`, never sent again.",
        (
            Column("seconds", "recovery_s", ".0f"),
            Column("lost", "lost", ".0f"),
            Column("sent twice", "duplicates", ".0f"),
            Column("unknown", "unknown", ".0f"),
        ),
        ("recovery",),
    ),
    "live": Table(
        "10,000 readers, 8 events",
        "One API process, one job, from what causes an event to its frame at each reader; the "
        "readers use one of the two cores.",
        (
            Column("half of the frames within, s", "p50_s"),
            Column("99 %, s", "p99_s"),
            Column("all, s", "max_s"),
            Column("replaced by a newer", "missing", ".0f"),
            Column("CPU s per 1,000 frames", "cpu_s_per_1000"),
        ),
    ),
    "scaling": Table(
        "More workers",
        "100 ms, WORKER_SLOTS=4: twenty requests at once each, so that the answer time is the "
        "limit and not the cores.",
        (_SENT[4], *_SENT[:2]),
        ("scaling",),
    ),
    "costs": Table(
        "Size and number of jobs, number of senders",
        "The same 50,000 messages, spread over jobs and senders (no rate, one worker): a message "
        "must not cost more for it. 100 and 1,000 senders have the 1,000 jobs of 50 among them, "
        "and are held against the 1,000 jobs of one.",
        _SENT[:4],
        ("costs",),
    ),
    "memory": Table(
        "A worker's memory",
        "Job after job of 50,000 through one worker; the last row is its end.",
        (Column("MB before", "idle_rss_mb", ".1f"), Column("MB after", "rss_mb", ".1f")),
    ),
}


def number(value: float | None, form: str) -> str:
    """Return a number as a table shows it.

    >>> number(None, ".1f"), number(1234.5, ",.0f")
    ('-', '1,234')
    """
    return "-" if value is None else format(value, form)


def cell(rounds: Sequence[Round], contender: str, column: Column) -> str:
    """Return a contender's median, `never` for what did not come, `not run` for who did not."""
    mine = [each for each in rounds if each.contender == contender]
    if all(each.not_run for each in mine):
        return NOT_RUN
    value = median(rounds, contender, column.figure)
    has_never = any(column.figure in each.figures for each in mine) and value is None
    note = " (stored)" if value is not None and all(each.is_stored for each in mine) else ""
    return (
        "never" + " (stored)" * mine[0].is_stored
        if has_never
        else number(value, column.form) + note
    )


def contenders(rounds: Sequence[Round]) -> list[str]:
    """Return who took part, in the order of their first turns."""
    return list(dict.fromkeys(each.contender for each in rounds))


def table(part: Part, shown: Table) -> str:
    """Return a part as a Markdown table."""
    lines = ["| | " + " | ".join(column.title for column in shown.columns) + " |"]
    lines.append("|---|" + "--:|" * len(shown.columns))
    for name in contenders(part.rounds):
        cells = [cell(part.rounds, name, column) for column in shown.columns]
        bold = "**" if is_ours(name) else ""
        lines.append(f"| {bold}{name}{bold} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_messages(part: Part) -> Part:
    """Return the rounds of the memory part with a row for the first and the last."""
    ends = [part.rounds[0], part.rounds[-1]] if len(part.rounds) > 1 else part.rounds
    rows = [
        Round(f"{each.figures.get('messages') or 0:,.0f} messages", each.turn, each.figures)
        for each in ends
    ]
    return Part(part.date, part.asked, rows)


def reasons(part: Part) -> list[str]:
    """Return why contenders did not run, each once."""
    said = {each.contender: each.not_run for each in part.rounds if each.not_run}
    return [f"{name}: {why}" for name, why in said.items()]


def section(name: str, part: Part) -> str:
    """Return a part with its heading, words, table and pictures."""
    shown = TABLES[name]
    told = f"Rounds: {len({each.turn for each in part.rounds})}, {part.date[:10]}."
    lines = [f"## {shown.title}", "", shown.told, told, ""]
    lines += [table(by_messages(part) if name == "memory" else part, shown), ""]
    for plot in shown.plots:
        lines += [f"![{shown.title}]({plot}.png)", ""]
    lines += [f"{reason}\n" for reason in reasons(part)]
    return "\n".join(lines)


def page(results: Results) -> str:
    """Return `docs/performance/README.md`."""
    facts = " · ".join(f"{name} {value}" for name, value in results.machine.items() if value)
    peers = " · ".join(f"{name} {value}" for name, value in results.versions.items())
    head = (
        "# Performance\n\n"
        "Written by `make bench` from [results.json](results.json), which has every round. "
        "Medians of interleaved rounds; CPU seconds rather than time where the machine is shared, "
        "of the process and its children, from /proc. "
        "A ratio is the median of the rounds' ratios, ours over theirs.\n\n"
        f"{facts}\n\n{peers}\n\n"
    )
    rows = [f"| `{name}` | {number(value, '.4g')} |\n" for name, value in results.ratios.items()]
    summary = "## In one table\n\n| ratio or figure | |\n|---|--:|\n" + "".join(rows) + "\n"
    parts = "\n".join(section(name, part) for name, part in results.parts.items())
    return (head + summary + parts).rstrip("\n") + "\n"


def block(results: Results) -> str:
    """Return what the README shows: what a message costs here and there, and the promises."""
    head = (
        f"{results.date[:10]}, {results.machine.get('cores', '?')} shared cores, Python "
        f"{results.machine.get('python', '?')}, Valkey {results.versions.get('Valkey', '?')}; "
        "`make bench`: medians of interleaved rounds, everything on."
    )
    lines = [head, ""]
    if "worker" in results.parts:
        rounds = results.parts["worker"].rounds
        lines += ["| CPU s per 1,000 messages | worker | Valkey |", "|---|--:|--:|"]
        for name in contenders(rounds):
            shown = [cell(rounds, name, Column("", figure)) for figure in (_CPU, _VALKEY)]
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
        lines += ["", "![What a message costs](docs/performance/worker.png)", ""]
    lines += sentences(results)
    lines.append("All of it: [docs/performance](docs/performance/README.md).")
    return "\n".join(lines)


def sentences(results: Results) -> list[str]:
    """Return the figures that need no table, a sentence each for what was measured."""

    def of(part: str, contender: str, figure: str, form: str) -> str:
        if part not in results.parts:
            return ""
        value = median(results.parts[part].rounds, contender, figure)
        return "" if value is None else number(value, form)

    size, theirs = (of("queued", who, "bytes_per_recipient", ",.0f") for who in (THIN, BULLMQ))
    accepted = of("accept", THIN, "accept_s", ".2f")
    back = of("recovery", THIN, "recovery_s", ".0f")
    unknown = of("recovery", THIN, "unknown", ",.0f")
    bull, saq = (of("recovery", who, "recovery_s", ".0f") for who in (BULLMQ, SAQ))
    late = of("live", THIN, "p99_s", ".2f")
    many = [of("scaling", workers(count), "rate", ",.0f") for count in (1, 2, 4, 8)]
    found = []
    if accepted:
        found.append(f"50,000 recipients are accepted over HTTP in {accepted} s.")
    if size:
        found.append(f"{size} bytes of Redis per queued recipient (BullMQ: {theirs or NOT_RUN}).")
    if back:
        found.append(
            f"With every default nobody is owed an answer {back} s after kill -9, {unknown} of "
            f"5,000 being `unknown` by it (BullMQ: {bull} s, saq: {saq} s)."
        )
    if late:
        found.append(f"10,000 readers of one job have 99 % of its events within {late} s.")
    if all(many):
        found.append(
            "1, 2, 4, 8 workers of 20 requests at once, answered after 100 ms: "
            f"{', '.join(many)} messages/s."
        )
    return found


def with_block(text: str, inner: str) -> str:
    """Return the README with its block replaced.

    >>> with_block(f"a {START} b {END} c", "x").count("b ")
    0
    """
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{inner}\n{END}{tail}"
