"""A real Chromium, driven over its DevTools socket: what `type` does is what its console does."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from shared.clock import Clock
from shared.embedded.children import Child

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_FLAGS: Final = (
    "--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip
_START_S: Final = 30
_ANSWER_S: Final = 20
_MESSAGE_BYTES: Final = 64 << 20


class PageError(AssertionError):
    """What was typed threw, or the browser did not do as it was told."""


class Page:
    """One tab: what it was sent, what its console said, what went wrong in it.

    Attributes:
        answers: (path, status) of every response, in order.
        requests: path of every request, in order.
        faults: exceptions nobody caught and what the security policy refused.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Borrow the socket; `listen` must run."""
        self.answers: list[tuple[str, int]] = []
        self.requests: list[str] = []
        self.faults: list[str] = []
        self._logged: list[list[dict[str, Any]]] = []
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._number = 0

    async def listen(self) -> None:
        """Take what the browser says until it closes."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._waiting.pop(told["id"]).set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded.set()
        elif event == "Network.requestWillBeSent":
            self.requests.append(_path(told["request"]["url"]))
        elif event == "Network.responseReceived":
            response = told["response"]
            self.answers.append((_path(response["url"]), response["status"]))
        elif event == "Runtime.consoleAPICalled":
            self._logged.append(told["args"])
        elif event == "Runtime.exceptionThrown":
            self.faults.append(str(told["exceptionDetails"].get("exception")))
        elif event == "Log.entryAdded" and told["entry"]["source"] == "security":
            self.faults.append(told["entry"]["text"])

    async def tell(self, method: str, **words: Any) -> dict[str, Any]:
        """Send one command of the protocol; return its result."""
        self._number += 1
        number, future = self._number, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        await self._socket.send_json({"id": number, "method": method, "params": words})
        told = await asyncio.wait_for(future, _ANSWER_S)
        if "error" in told:
            raise PageError(f"{method}: {told['error']}")
        result: dict[str, Any] = told["result"]
        return result

    async def goto(self, url: str) -> None:
        """Open an address and wait until it has loaded."""
        self._loaded.clear()
        await self.tell("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), _ANSWER_S)

    async def type(self, text: str) -> Any:
        """Type into the console, and press enter; return the value if it is plain data."""
        told = await self.tell(
            "Runtime.evaluate", expression=text, replMode=True, userGesture=True,
            includeCommandLineAPI=True, returnByValue=not text.lstrip().startswith("const "),
        )  # fmt: skip
        if "exceptionDetails" in told:
            raise PageError(str(told["exceptionDetails"].get("exception")))
        return told["result"].get("value")

    async def logged(self) -> list[list[Any]]:
        """Return what the console has shown so far, objects as data."""
        return [[await self._value(each) for each in line] for line in self._logged]

    async def _value(self, shown: dict[str, Any]) -> Any:
        if "objectId" not in shown:
            return shown.get("value")
        told = await self.tell(
            "Runtime.callFunctionOn", objectId=shown["objectId"], returnByValue=True,
            functionDeclaration="function () { return this; }",
        )  # fmt: skip
        return told["result"].get("value")

    async def fill(self, selector: str, text: str) -> None:
        """Type into a field, as a keyboard does."""
        await self.type(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.tell("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        """Click on what is there."""
        await self.type(f"document.querySelector({json.dumps(selector)}).click()")

    async def is_shown(self, selector: str) -> bool:
        """Tell whether something is there and takes room."""
        found = f"document.querySelector({json.dumps(selector)})"
        return bool(await self.type(f"!!{found} && {found}.getClientRects().length > 0"))

    async def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """Change the window and the scheme of colours."""
        await self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=False,
            deviceScaleFactor=1,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.tell("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, file: Path) -> None:
        """Keep what the window shows, as PNG."""
        told = await self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(told["data"]))


def _path(url: str) -> str:
    return "/" + url.split("/", 3)[-1] if url.count("/") > 2 else url


def binary() -> str:
    """Return Chromium's path.

    Raises:
        PageError: there is none; `.ci/chromium` installs Debian's.
    """
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    raise PageError("there is no Chromium here: run `.ci/chromium` as root, or install one")


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Page]:
    """Start a browser with an empty profile in `folder`; yields its only tab."""
    profile = folder / "profile"
    flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    command = [binary(), *flags, f"--user-data-dir={profile}", "about:blank"]
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    child = Child("chromium", command, folder, {**kept, "HOME": str(folder)})
    child.start()
    try:
        address = await _address(child, profile)
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(address, max_msg_size=_MESSAGE_BYTES) as socket,
        ):
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            for domain in ("Page", "Runtime", "Network", "Log"):
                await page.tell(f"{domain}.enable")
            yield page
            listening.cancel()
    finally:
        await child.stop()


async def _address(child: Child, profile: Path) -> str:
    """Return the socket of the first tab, once the browser has said its port."""
    clock = Clock()
    end_s = clock.monotonic() + _START_S
    while clock.monotonic() < end_s and child.is_running:
        await clock.sleep(0.05)
        try:
            port = int((profile / "DevToolsActivePort").read_text().split()[0])
            async with aiohttp.request("GET", f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
        except (OSError, IndexError, aiohttp.ClientError):
            continue
        if tabs:
            return str(tabs[0]["webSocketDebuggerUrl"])
    raise PageError(f"Chromium did not start:\n{child.tail()}")
