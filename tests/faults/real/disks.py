"""G13: the append-only file on a file system of 4 MB, which is full while it sends."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import redis.exceptions

from shared.embedded.children import ChildError
from shared.embedded.valkey import wait_open
from tests.e2e.stack import KEY
from tests.faults.real.door import ask
from tests.faults.real.rig import NotHere, Rig, is_ready, require
from tests.faults.real.workers import FINISH_S

COUNT: Final = 2000
RATE: Final = 400
SIZE: Final = 4 << 20
HEALS_S: Final = 5
_PIECE: Final = 64 << 10


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Have a file system of 4 MB at a folder; it is gone afterwards in every case."""
    program, away = shutil.which("mount"), shutil.which("umount")
    if program is None or away is None:
        raise NotHere("no mount")
    words = [program, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    made = subprocess.run(words, capture_output=True, check=False)
    if made.returncode:
        raise NotHere("no right to mount a file system")
    try:
        yield
    finally:
        # Lazily: whoever still holds a file of it must not keep it in the tree.
        subprocess.run([away, "-l", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Write until the file system takes no more."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * _PIECE):
            pass


async def full_disk(rig: Rig, chance: Random, index: int) -> dict[str, float]:
    """By turns `everysec`, where writes are refused, and `always`, where the server ends itself."""
    policy = ("everysec", "always")[index % 2]
    folder = rig.folder / "small-disk"
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted(folder))
        try:
            await rig.valkey.stop()
            child = rig.valkey.child
            assert child is not None
            child.command += ["--dir", str(folder), "--appendfsync", policy]
            await _start(rig)
            await rig.queue.give_born(0, "b")  # what it had stays behind on the other disk
            return await _filled(rig, chance, folder, is_ended=policy == "always")
        finally:
            await rig.put_away()
            await rig.valkey.stop()
            stack.close()
            await rig.valkey.start()


async def _start(rig: Rig) -> None:
    """Start the server as it stands, as its supervisor would."""
    assert rig.valkey.child is not None
    rig.valkey.child.start()
    await wait_open(rig.valkey.child, rig.valkey.port)


async def _filled(rig: Rig, chance: Random, folder: Path, *, is_ended: bool) -> dict[str, float]:
    await rig.apis_ready(1)
    await rig.workers(2)
    origin, child = rig.apis[0][1], rig.valkey.child
    assert child is not None
    job = await rig.submit(COUNT, "fast")
    await rig.has_sent(job, chance.randrange(100, COUNT // 2))
    reaped, ballast = rig.logged("worker.reaped"), folder / "ballast"
    fill(ballast)
    if is_ended:
        require(await child.wait(5), "the server has not ended itself")
    else:
        await rig.until(lambda: _refuses(rig), 5, "writes get MISCONF")

    async def is_unready() -> bool:
        return not await is_ready(origin)

    await rig.until(is_unready, 5, "readiness says that nothing can be written")
    answer = await ask(origin, KEY, "full", rig.phones(100), sender="main")
    require(answer.status == 503, f"a submission was answered {answer.status} {answer.code}")
    if is_ended:
        # Its supervisor tries at once, and the disk is as full as before.
        with contextlib.suppress(ChildError):
            await _start(rig)
    await rig.until(lambda: rig.stands_still(chance.uniform(0.3, 1.0)), 15, "nothing is sent", 0.1)
    held = rig.asked(job)
    ballast.unlink()
    freed_s = rig.clock.monotonic()

    async def can_write() -> bool:
        if not child.is_running:
            await _start(rig)
        await rig.queue.probe()
        return True

    await rig.until(can_write, HEALS_S, "written again once there is space")
    heals_s = rig.clock.monotonic() - freed_s
    await rig.until(lambda: is_ready(origin), HEALS_S, "ready once there is space", 0.05)
    took_s = await rig.goes_on(freed_s, HEALS_S, "space was free") if held < COUNT else 0.0
    await rig.has_ended(job, COUNT / RATE + FINISH_S)
    unknown = await rig.ended_well(job)
    rig.bounded(unknown, 0)
    require(rig.logged("worker.reaped") == reaped, "a worker that lives was reaped")
    found = await rig.verdict()
    require(not found, "; ".join(found[:5]))
    used = sum(file.stat().st_size for file in (folder / "appendonlydir").iterdir())
    return {
        "unknown": unknown,
        "worst healing s": heals_s,
        "worst pause s": took_s,
        "worst MB of file": used / 2**20,
    }


async def _refuses(rig: Rig) -> bool:
    async with rig.redis() as client:
        try:
            await client.set("{s0}:probe", "1", ex=10)
        except redis.exceptions.ResponseError as error:
            return str(error).startswith("MISCONF")
    return False
