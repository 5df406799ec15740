"""``crungo system check``: is the store what it says?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli.flags import Flag, Verb
from crungo.cli.human import count

if TYPE_CHECKING:
    from crungo.cli.flags import Context, Parsed
    from crungo.image.check import Problem
    from crungo.image.store import Store

__all__ = ["VERB", "call"]

VERB = Verb(
    name="system check",
    summary="Verify the store",
    description="Verify every name, blob and unpacked layer. Reads all of the store, which may take minutes.",
    flags=(
        Flag(name="--quiet", short="-q", kind="switch", help="Print nothing but problems."),
        Flag(name="--repair", kind="switch", help="Mend what is wrong; what cannot be mended is removed."),
    ),
    epilog="Exit code: 0 all is well, or was mended; 1 something is wrong; 125 the check failed.",
)


def call(parsed: Parsed, context: Context) -> int:
    """Print what is wrong."""
    import anyio

    from crungo.cli.output import emit
    from crungo.image.store import Store

    store = Store(context.roots)
    problems = anyio.run(_check, store, context, parsed.switch("repair"))
    emit("".join(f"{_told(problem)}\n" for problem in problems))
    if not parsed.switch("quiet"):
        emit(_summary(len(store.images()), problems))
    return int(any(not problem.mended for problem in problems))


async def _check(store: Store, context: Context, repair: bool) -> list[Problem]:
    from anyio import to_thread

    from crungo.engine import Engine
    from crungo.image.check import check
    from crungo.runtime.unpacking import SpawnerUnpacker

    async with Engine(root=context.roots.root, run=context.roots.run) as engine:
        problems = await check(store, SpawnerUnpacker(engine.spawner), repair=repair)
        # What was just compared with its blob, byte by byte, is worth being remembered beyond a restart.
        await to_thread.run_sync(store.settle)
    return problems


def _told(problem: Problem) -> str:
    mended = " (mended)" if problem.mended else ""
    return f"{problem.kind} {problem.what}: {problem.message}{mended}"


def _summary(images: int, problems: list[Problem]) -> str:
    left = sum(not problem.mended for problem in problems)
    found = f"{count(len(problems), 'problem')}, {left} left" if problems else "no problems"
    return f"{count(images, 'image')} checked: {found}"
