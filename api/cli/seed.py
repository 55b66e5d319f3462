"""`python -m api.cli.seed EMAIL`: the first admin, his password read from stdin; prints his id."""

from __future__ import annotations

import asyncio
import sys

from api import passwords
from shared import connect, settings
from shared.archive import Archive
from shared.ids import Ids


async def seed(email: str, password: str) -> str:
    """Make the admin, or give him this password; return his user id."""
    pool = await connect.open_postgres(settings.load())
    try:
        archive = Archive(pool)
        user = await archive.user_by_email(email)
        secret = await passwords.hash_password(password)
        if user is not None:
            await archive.set_password(user.id, secret)
            return user.id
        made = str(Ids().user_id())
        await archive.add_user(made, email, secret, "admin")
        return made
    finally:
        await pool.close()


if __name__ == "__main__":
    sys.stdout.write(asyncio.run(seed(sys.argv[1], sys.stdin.read())) + "\n")
