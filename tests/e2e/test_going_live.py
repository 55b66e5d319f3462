"""docs/going-live.md at its word: each command is run, each output is compared.

What a block is stands behind its three ticks: `sh` is run and a `text` with its output follows;
`sh up` is `make up`, started here; `sh docker` and `sh kubectl` need more than a test has, so their
files, services and objects are looked for; `env` is loaded as settings.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from api.cli.main import app
from shared.migrate import steps
from shared.settings import VARIABLES, load
from tests.conftest import ROOT, open_folder

Eventually = Callable[..., Awaitable[Any]]
PAGE = ROOT / "docs/going-live.md"
KINDS = {"sh", "sh up", "sh docker", "sh kubectl", "env", "text"}
_FENCE = re.compile(r"^```(?P<kind>[^`\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs each time, on the page and here: both sides are read through this.
_SHAPES = (
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<uuid>"),
    (r"\b(job|snd)_[0-9a-z]{26,}\b", r"<\1>"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>"),
    (r"\b\d{13}-\d+\b", "<event>"),
    (r"\bwamid\.[\w=+/]+", "<wamid>"),
    (r"http://(localhost|127\.0\.0\.1):\d+", "<origin>"),
    (r"\bversion \d+(\.\d+)+", "version <n>"),
    (r"\bmay open \d+", "may open <n>"),
    (r"\b\d\.\d s away\b", "<n> s away"),
    (r"[ \r]+$", ""),  # the CSV's own line ends too
)


class Block(NamedTuple):
    """A fenced block of the page, and the line it begins in."""

    kind: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """Return every block of a page; one whose kind nobody knows is a fault."""
    found = [
        Block(each["kind"], each["text"], page.count("\n", 0, each.start()) + 1)
        for each in _FENCE.finditer(page)
    ]
    assert 2 * len(found) == len(re.findall(r"^ *(?:```|~~~)", page, re.MULTILINE))
    for each in found:
        assert each.kind in KINDS, f"line {each.line}: a block `{each.kind}` that nothing checks"
    return found


def commands(kind: str) -> list[list[str]]:
    """Return the words of each command in the page's blocks of a kind."""
    lines = [
        line
        for each in blocks(PAGE.read_text(encoding="utf-8"))
        if each.kind == kind
        for line in each.text.replace("\\\n", " ").splitlines()
    ]
    return [shlex.split(line) for line in lines]


def same(shown: str, came: str) -> bool:
    r"""Tell whether an output is the one on the page; there `…` is any text.

    >>> same("[…, 3]\n", "[1, 2, 3]\n"), same("4 s\n", "5 s\n")
    (True, False)
    """
    for shape, word in _SHAPES:
        shown = re.sub(shape, word, shown, flags=re.MULTILINE)
        came = re.sub(shape, word, came, flags=re.MULTILINE)
    pattern = ".*".join(map(re.escape, shown.split("…")))
    return re.fullmatch(pattern, came, re.DOTALL) is not None


# -- what is only read -------------------------------------------------------------------------


def test_an_unmarked_block_is_a_fault() -> None:
    for page in ("```\nls\n```\n", "```bash\nls\n```\n", "```sh dokcer\nls\n```\n", "  ```\nx\n"):
        with pytest.raises(AssertionError):
            blocks(page)


def test_each_command_has_its_output_behind_it() -> None:
    found = blocks(PAGE.read_text(encoding="utf-8"))
    ran = [index for index, each in enumerate(found) if each.kind in {"sh", "sh up"}]
    assert len(ran) >= 20
    for index in ran:
        assert found[index + 1].kind == "text", f"line {found[index].line}: no output follows"


def test_the_variables_for_meta_are_settings_and_no_sandbox() -> None:
    [text] = [each.text for each in blocks(PAGE.read_text(encoding="utf-8")) if each.kind == "env"]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(text.replace("…", "x" * 32))
        file.flush()
        made = load({}, Path(file.name))
    assert (made.warnings, made.is_sandbox, made.disable_bulk_messaging) == ((), False, False)
    assert made.public_url == "https://bulk.example.org"


def _compose() -> argparse.ArgumentParser:
    """Return what the page uses of `docker compose`."""
    parser = argparse.ArgumentParser(prog="docker compose", exit_on_error=False)
    # Without it a later `up` would forget PUBLIC_URL.
    parser.add_argument("--env-file", choices=[".env"], required=True)
    parser.add_argument("-f", "--file", required=True)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", exit_on_error=False)
    for flag in ("--build", "--no-build", "--detach"):
        up.add_argument(flag, action="store_true")
    up.add_argument("services", nargs="*")
    verbs.add_parser("ps", exit_on_error=False)
    run = verbs.add_parser("run", exit_on_error=False)
    run.add_argument("--rm", action="store_true")
    run.add_argument("services", nargs=1)
    run.add_argument("words", nargs=argparse.REMAINDER)
    return parser


def test_what_docker_is_told_is_there() -> None:
    found = commands("sh docker")
    assert len(found) >= 6
    for words in found:
        given: dict[str, str] = {}
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            given[name] = value
        if words[0] == "sh":
            assert (ROOT / words[1]).is_file()
        elif words[:2] == ["docker", "build"]:
            assert words[2::2] == ["--file", "--tag", "."][: len(words[2::2])]
            assert (ROOT / words[3]).is_file()
        else:
            assert words[:2] == ["docker", "compose"]
            told = _compose().parse_args(words[2:])
            text = (ROOT / told.file).read_text(encoding="utf-8")
            services = yaml.safe_load(text)["services"]
            assert set(getattr(told, "services", [])) <= set(services)
            assert all(f"${{{name}:-" in text for name in given)
            if told.verb == "run":
                app.parse_args(told.words, exit_on_error=False, print_error=False)


def test_what_kubectl_is_told_is_there() -> None:
    text = (ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8")
    objects = list(yaml.safe_load_all(text))
    names = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in objects}
    found = commands("sh kubectl")
    assert len(found) >= 8
    for words in found:
        assert words[0] == "kubectl"
        options = [word for word in words if word.startswith("--")]
        told = [word for word in words if "/" in word and word not in options]
        variables = [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]
        assert set(variables) <= set(VARIABLES)
        if words[1] == "create":
            assert words[2:5] == ["secret", "generic", "drumbeat"]
            assert "secretRef: { name: drumbeat }" in text
        elif words[1] == "apply":
            assert told == ["deploy/kubernetes.yaml"]
        else:
            assert words[1] in {"rollout", "set", "wait"}
            assert told
            assert set(told) <= names


def test_migrations_only_add() -> None:
    """What going back one release stands on."""
    for version, sql in steps():
        text = re.sub(r"--.*", "", sql)
        taken = re.search(
            r"\b(DROP|RENAME|TRUNCATE|ALTER COLUMN|SET NOT NULL)\b", text, re.IGNORECASE
        )
        assert taken is None, f"{version}: {taken and taken[0]}"
        for line in re.findall(r"ADD COLUMN[^,;]*NOT NULL[^,;]*", text):
            assert re.search(r"DEFAULT|GENERATED", line), f"{version}: {line}"


def test_every_deliberate_difference_from_the_old_feature_is_listed() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("What is different, and meant to be")[2]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    keys = ("3,000 a minute", "side by side", "outlives every process", "pause the job")
    assert len(rows) == len(keys)
    for row, key in zip(rows, keys, strict=True):
        assert key in row


# -- what is run ---------------------------------------------------------------------------------


class Shell:
    """A reader at a terminal: his folder, his variables, and `drumbeat` on his path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.up: asyncio.subprocess.Process | None = None
        names = ("HOME", "TMPDIR", "LANG")
        self.env = {name: os.environ[name] for name in names if name in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env |= {"PATH": path, "NO_COLOR": "1", "COLUMNS": "80"}
        (folder / "state").touch()

    async def start(self, eventually: Eventually) -> str:
        """Do what `make up` does, on any port; return what it printed."""
        out, err = self.folder / "up.out", self.folder / "up.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self.up = await asyncio.create_subprocess_exec(
                "drumbeat", "up", "--port", "0",
                cwd=self.folder, env=self.env, stdout=stdout, stderr=stderr,
            )  # fmt: skip
        is_up = "/api/bulk/stats"
        up = self.up
        await eventually(lambda: is_up in out.read_text() or up.returncode is not None, within_s=50)
        assert is_up in out.read_text(), err.read_text()
        return out.read_text()

    async def type(self, script: str) -> str:
        """Run a block with the variables that the last one left; return its standard output."""
        text = f". ./state\nset -e -o pipefail\n{script}\nexport -p > state\n"
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", text, cwd=self.folder, env=self.env, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, f"{script}\n{out.decode()}\n{err.decode()}"
        return out.decode()

    async def stop(self) -> None:
        if self.up is not None and self.up.returncode is None:
            self.up.send_signal(signal.SIGTERM)
            await asyncio.wait_for(self.up.wait(), 20)


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    with open_folder("drumbeat-live-") as folder:
        made = Shell(folder)
        yield made
        await made.stop()


@pytest.mark.slow
async def test_every_command_prints_what_the_page_shows(
    shell: Shell, eventually: Eventually
) -> None:
    found, wrong = blocks(PAGE.read_text(encoding="utf-8")), []
    for block, after in pairwise(found):
        if block.kind == "sh up":
            assert block.text == "make up\n"
            came = await shell.start(eventually)
        elif block.kind == "sh":
            came = await shell.type(block.text)
        else:
            continue
        if not same(after.text, came):
            wrong.append(f"line {block.line}:\n{block.text}shown:\n{after.text}came:\n{came}")
    assert not wrong, "\n".join(wrong)
    assert (shell.folder / ".demo/env").stat().st_mode & 0o777 == 0o600
