"""A support desk: customers write from Telegram and Discord, agents answer from one Slack room.

Shows one room bound to several platforms, messages that are stored once, and answers that find
their way back to where the customer last wrote from. Runs offline: what would be sent is printed.
"""

from __future__ import annotations

import anyio

from trunkline import Resolution, Trunkline
from trunkline.line import Arrival
from trunkline.persistence import Message

DESK = ("slack", "acme", "C-SUPPORT")

#: What the platforms' webhooks would bring: platform, chat, user, message id, text.
CUSTOMERS: list[tuple[str, int | str, int | str, int | str, str]] = [
    ("telegram", 42, 7, 1, "My parcel is late"),
    ("discord", "D-9", "ada", "m1", "How do I change my address?"),
    ("telegram", 42, 7, 1, "My parcel is late"),  # delivered twice, as webhooks are
]


async def main() -> None:
    async with Trunkline("memory://") as line:
        desk = await line.persistence.get_or_create_room_by_external_binding(
            *DESK, {"type": "channel", "name": "Support desk"}
        )
        open_questions: dict[str, Arrival] = {}

        for platform, chat, user, message_id, text in CUSTOMERS:
            arrival = await line.ingest(
                channel=platform,
                bridge_id="shop_bot",
                external_room_id=chat,
                external_user_id=user,
                external_message_id=message_id,
                content=text,
                room={"type": "direct", "name": f"{user} on {platform}"},
            )
            if arrival.duplicate:
                print(f"   (again: {text!r})")
                continue
            await line.persistence.save_message(
                Message.new(
                    room_id=desk.id,
                    content=f"{arrival.room.name}: {text}",
                    metadata={"answers": arrival.message.id},
                )
            )
            open_questions[arrival.message.id] = arrival
            print(f"-> {DESK[0]} {DESK[2]}: {arrival.room.name}: {text}")

        for shown in await line.persistence.get_messages(desk.id):
            question = open_questions[shown.metadata["answers"]]
            await answer(line, question, f"We are looking into {question.message.content!r}")

        print(await line.persistence.counts())


async def answer(line: Trunkline, question: Arrival, text: str) -> None:
    """An agent answers; the customer gets it where they wrote from."""
    resolution = await line.reply_route(question)

    async def send(_route: object, content: str) -> str:
        print(f"<- {describe(resolution)}: {content}")
        return f"sent-{question.message.external_id}"

    sent = await line.deliver(question, text, send)
    assert sent.status == "sent"


def describe(resolution: Resolution) -> str:
    route = resolution.route
    return f"{route.channel_type} {route.external_room_id} ({resolution.source})"


if __name__ == "__main__":
    anyio.run(main)
