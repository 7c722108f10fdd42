"""An assistant that streams its answers: bursts, corrections, `/stop`, a kill and a restart.

Shows turns: three short messages are one turn with one answer; a correction interrupts the answer
that is on its way; `/stop` runs beside it and cancels it. A bot that is killed in the middle of an
answer goes on when it is started again: what a step returned is not paid for twice, and there is
one answer. Runs offline: the model is a fake, the bot is a process that is killed for good, and the
platform is this program, which accepts messages into the same database.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from trunkline import Inbox, Route, Trunkline, TurnPolicy
from trunkline.line import LineTurn

POLICY = TurnPolicy(while_busy="interrupt", quiet_ms=300)

show = partial(print, flush=True)


async def serve(url: str) -> None:
    """The bot."""
    line = Trunkline(url)

    async def answer(turn: LineTurn) -> None:
        question = " ".join(str(message.content) for message in turn.messages)
        if question == "/stop":
            await turns.cancel(turn.session_key)
            await turn.reply("Stopped.")
        else:
            found = await turn.step("search", search, question)
            await turn.reply(await turn.step("generate", generate, found))

    turns = line.turns(answer, POLICY, send=send)
    turns.events.subscribe(lambda event: show(f"   ({event.name})"))
    async with line, turns:
        await turns.serve()


async def search(question: str) -> str:
    show(f"   search: {question}")
    return f"Found: {question}"


async def generate(found: str) -> str:
    """Stream an answer; on a platform, into a message that is edited while it grows."""
    words = found.split()
    for end in range(1, len(words)):
        await anyio.sleep(0.15)  # the model thinks
        show(f"   draft: {' '.join(words[:end])} ...")
    return found


async def send(_route: Route, content: str) -> None:
    show(f"bot: {content}")


# -- the platform, and its user ------------------------------------------------------------------

#: What the user says, and what they see before they go on.
BEFORE = (
    ("hi", ""),
    ("a question:", ""),
    ("how high is Rysy?", "(finished)"),
    ("how high is Everest, by the newest survey?", "draft: Found:"),
    ("in feet", "(finished)"),
    ("tell me all that you know about lakes, rivers, seas and what lives in them", "draft: Found:"),
    ("/stop", "bot: Stopped."),
    ("what is a kilogram, who keeps it, where, and since when?", "draft: Found:"),
)
ANSWERS = [
    "bot: Found: hi a question: how high is Rysy?",
    "bot: Found: how high is Everest, by the newest survey? in feet",
    "bot: Stopped.",
    "bot: Found: what is a kilogram, who keeps it, where, and since when?",
]


@asynccontextmanager
async def bot(url: str) -> AsyncGenerator[BufferedByteReceiveStream, None]:
    """The bot as a process of its own, killed at the end; what it shows."""
    command = [sys.executable, __file__, url]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        yield BufferedByteReceiveStream(process.stdout)
        process.kill()


async def main(url: str) -> None:
    shown = [""]

    async def see(screen: BufferedByteReceiveStream, wanted: str) -> None:
        while wanted not in shown[-1]:
            shown.append((await screen.receive_until(b"\n", 1_000)).decode())
            show(shown[-1])

    # A process without turns follows their policy within seconds, unless it has its own.
    async with Trunkline(url, inbox=Inbox(url, policy=POLICY)) as line:
        async with bot(url) as screen:
            for number, (text, wanted) in enumerate(BEFORE):
                show(f"user: {text}")
                await line.accept(
                    channel="chat",
                    bridge_id="bot",
                    external_room_id=42,
                    external_message_id=number,
                    content=text,
                    urgent=text == "/stop",
                )
                await see(screen, wanted)
        show("-- the bot was killed, and starts again --")
        async with bot(url) as screen:
            await see(screen, "(finished)")
    assert [line for line in shown if line.startswith("bot: ")] == ANSWERS
    assert shown.count("   search: what is a kilogram, who keeps it, where, and since when?") == 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        anyio.run(serve, sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(main, f"sqlite:///{Path(folder) / 'bot.db'}")
