"""Two workers over one database, behind a web front end that only accepts.

Shows how turns spread over processes: the front end answers a webhook with 200 when the message is
on disk, and runs no turns itself; each conversation is handled by one worker at a time, in order.
One worker is killed in the middle, and the other takes its turns over. A reply that was on its way
then is sent again, with the same nonce, by which the platform knows it. Runs offline: requests go
to the app in process, the workers are processes of their own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import trunkline
from trunkline import Trunkline, TurnPolicy
from trunkline.errors import InboxFull, StoreUnavailable
from trunkline.line import LineTurn

ROOMS, MESSAGES = 6, 5


async def work(url: str, name: str) -> None:
    """A worker."""
    line = Trunkline(url, fsm=None, signal=None)

    async def answer(turn: LineTurn) -> None:
        (message,) = turn.messages
        await turn.reply(await turn.step("generate", generate, str(message.content)))

    async def send(route: trunkline.Route, content: str, *, nonce: str) -> None:
        print(f"{name} {nonce} {route.external_room_id} {content}", flush=True)

    turns = line.turns(answer, TurnPolicy(while_busy="queue"), send=send, max_running=3)
    async with line, turns:
        await turns.serve()


async def generate(question: str) -> str:
    await anyio.sleep(0.2)
    return f"answer-to-{question}"


def make_app(line: Trunkline) -> Starlette:
    """The web front end."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None, None]:
        async with line:
            yield

    async def webhook(request: Request) -> Response:
        update = await request.json()
        try:
            await line.accept(
                channel="chat",
                bridge_id="bot",
                external_room_id=update["room"],
                external_message_id=update["id"],
                content=update["text"],
            )
        except (StoreUnavailable, InboxFull):
            return Response(status_code=503)  # the platform tries again later
        return Response()

    return Starlette(routes=[Route("/webhook", webhook, methods=["POST"])], lifespan=lifespan)


async def main(url: str) -> None:
    line = Trunkline(url, fsm=None, signal=None)
    app = make_app(line)
    #: What the platform shows: nonce → room and text.
    answers: dict[str, tuple[str, str]] = {}
    all_answered = anyio.Event()
    by_worker: dict[str, int] = {}
    workers: dict[str, Process] = {}

    async def listen(name: str) -> None:
        command = [sys.executable, __file__, url, name]
        async with await anyio.open_process(command, stderr=None) as workers[name]:
            stdout = workers[name].stdout
            assert stdout is not None
            output = BufferedByteReceiveStream(stdout)
            while True:
                try:
                    shown = (await output.receive_until(b"\n", 1_000)).decode()
                except (anyio.EndOfStream, anyio.IncompleteRead):
                    return
                print(shown)
                _, nonce, room, text = shown.split()
                answers.setdefault(nonce, (room, text))
                by_worker[name] = by_worker.get(name, 0) + 1
                if len(answers) == ROOMS * MESSAGES:
                    all_answered.set()
                if name == "worker-1" and by_worker[name] == ROOMS:
                    print("-- worker-1 is killed --")
                    workers[name].kill()

    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot")
    async with app.router.lifespan_context(app), client, anyio.create_task_group() as tasks:
        tasks.start_soon(listen, "worker-1")
        tasks.start_soon(listen, "worker-2")
        for number in range(ROOMS * MESSAGES):
            update = {"room": f"room-{number % ROOMS}", "id": number, "text": str(number)}
            (await client.post("/webhook", json=update)).raise_for_status()
            (await client.post("/webhook", json=update)).raise_for_status()  # it comes twice
        await all_answered.wait()
        for process in workers.values():
            if process.returncode is None:
                process.terminate()
    for room in range(ROOMS):
        wanted = [f"answer-to-{number}" for number in range(room, ROOMS * MESSAGES, ROOMS)]
        assert [text for at, text in answers.values() if at == f"room-{room}"] == wanted
    print(f"{len(answers)} answers: {by_worker}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        anyio.run(work, sys.argv[1], sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(main, f"sqlite:///{Path(folder) / 'bot.db'}")
