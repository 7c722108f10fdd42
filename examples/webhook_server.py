"""A webhook server with Starlette, in which a graceful stop loses nothing.

Shows how trunkline joins an ASGI lifespan, that a message which was answered with 200 is on disk,
and that the same webhook again doubles nothing. Runs offline: requests go to the app in process.
With uvicorn: `uvicorn webhook_server:app`, after `TRUNKLINE_URL=sqlite:///bot.db`.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trunkline import Trunkline
from trunkline.errors import InvalidModel, StoreUnavailable


def make_app(line: Trunkline) -> Starlette:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None, None]:
        async with line:  # on leaving, what was accepted is finished first
            yield

    async def webhook(request: Request) -> Response:
        update = (await request.json())["message"]
        try:
            arrival = await line.ingest(
                channel="telegram",
                bridge_id=request.path_params["bot"],
                external_room_id=update["chat"]["id"],
                external_user_id=update["from"]["id"],
                external_message_id=update["message_id"],
                content=update["text"],
            )
        except InvalidModel as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except StoreUnavailable as error:
            # The platform tries again later: nothing is lost, and nothing will be doubled.
            return JSONResponse({"error": str(error)}, status_code=503)
        answer = await line.reply_route(arrival)
        return JSONResponse(
            {
                "method": "sendMessage",
                "chat_id": answer.external_room_id,
                "text": f"got {arrival.message.content!r}",
                "duplicate": arrival.duplicate,
            }
        )

    routes = [Route("/webhook/{bot}", webhook, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


app = make_app(Trunkline.from_environment())


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'bot.db'}"
        for start in ("first start", "second start"):
            line = Trunkline(url)
            offline = make_app(line)
            transport = httpx.ASGITransport(offline)
            async with (
                offline.router.lifespan_context(offline),
                httpx.AsyncClient(transport=transport, base_url="http://bot") as client,
            ):
                for number in (1, 2, 2):
                    update = {
                        "message_id": number,
                        "chat": {"id": 42},
                        "from": {"id": 7},
                        "text": f"hello {number}",
                    }
                    answer = await client.post("/webhook/my_bot", json={"message": update})
                    answer.raise_for_status()
                    print(start, answer.json())
                counts = await line.persistence.counts()
            assert counts["messages"] == 2, counts


if __name__ == "__main__":
    anyio.run(main)
