"""Keys out of updates: as plain dictionaries, and as aiogram and python-telegram-bot make them."""

from __future__ import annotations

import pytest

from trunkline import FSMStore, SessionKey, Trunkline
from trunkline.errors import ConfigurationError
from trunkline.fsm import Chat, ChatTopic, ChatTopicUser, ChatUser, User

ANN = {"id": 7, "is_bot": False, "first_name": "Ann"}
BOB = {"id": 8, "is_bot": False, "first_name": "Bob"}
BOT = {"id": 99, "is_bot": True, "first_name": "Bot"}
PRIVATE = {"id": 7, "type": "private", "first_name": "Ann"}
GROUP = {"id": -100, "type": "supergroup", "title": "Group"}
FORUM = {"id": -200, "type": "supergroup", "title": "Forum", "is_forum": True}
CHANNEL = {"id": -300, "type": "channel", "title": "Channel"}

DATE = 1_760_000_000


def message(chat, user=None, **fields):
    return {"message_id": 1, "date": DATE, "chat": chat, "text": "hello"} | (
        fields if user is None else {"from": user, **fields}
    )


IN_TOPIC = {"message_thread_id": 55, "is_topic_message": True}
TOPIC_MADE = message(FORUM, BOB, forum_topic_created={"name": "Topic", "icon_color": 7322096})


def in_topic(user):
    return message(FORUM, user, **IN_TOPIC, reply_to_message=TOPIC_MADE)


def press(**fields):
    return {"id": "1", "from": ANN, "chat_instance": "1", "data": "yes", **fields}


MEMBER_UPDATE = {
    "chat": GROUP,
    "from": ANN,
    "date": DATE,
    "old_chat_member": {"user": BOB, "status": "left"},
    "new_chat_member": {"user": BOB, "status": "member"},
}

LIKE = {"type": "emoji", "emoji": "👍"}

#: What an update holds → chat, thread and user of it.
UPDATES = {
    "a private message": ({"message": message(PRIVATE, ANN)}, (7, None, 7)),
    "a message in a group": ({"message": message(GROUP, ANN)}, (-100, None, 7)),
    "a message in a topic": ({"message": in_topic(ANN)}, (-200, 55, 7)),
    "a message in the general topic": ({"message": message(FORUM, ANN)}, (-200, None, 7)),
    "a thread of a private chat": (
        {"message": message(PRIVATE, ANN, **IN_TOPIC)},
        (7, 55, 7),
    ),
    "a message that only has the number of a thread": (
        {"message": message(GROUP, ANN, message_thread_id=55)},
        (-100, 55, 7),
    ),
    "a reply in a plain group": (
        {
            "message": message(
                GROUP, ANN, message_thread_id=55, reply_to_message=message(GROUP, BOB)
            )
        },
        (-100, None, 7),
    ),
    "a message that pins another": (
        {"message": message(GROUP, ANN, pinned_message=message(GROUP, BOB))},
        (-100, None, 7),
    ),
    "an edited message": ({"edited_message": message(GROUP, ANN, edit_date=DATE)}, (-100, None, 7)),
    "a message in the name of the group": (
        {"message": message(GROUP, sender_chat=GROUP)},
        (-100, None, None),
    ),
    "a channel post": ({"channel_post": message(CHANNEL)}, (-300, None, None)),
    "an edited channel post": ({"edited_channel_post": message(CHANNEL)}, (-300, None, None)),
    "a button in a group": (
        {"callback_query": press(message=message(GROUP, BOT))},
        (-100, None, 7),
    ),
    "a button in a topic": ({"callback_query": press(message=in_topic(BOT))}, (-200, 55, 7)),
    "a button under a reply in a plain group": (
        {
            "callback_query": press(
                message=message(
                    GROUP, BOT, message_thread_id=55, reply_to_message=message(GROUP, ANN)
                )
            )
        },
        (-100, None, 7),
    ),
    "a button under a message that is too old": (
        {"callback_query": press(message={"chat": GROUP, "message_id": 1, "date": 0})},
        (-100, None, 7),
    ),
    "a button under an inline message": (
        {"callback_query": press(inline_message_id="abc")},
        (None, None, 7),
    ),
    "an inline query": (
        {"inline_query": {"id": "1", "from": ANN, "query": "cats", "offset": ""}},
        (None, None, 7),
    ),
    "a chosen inline result": (
        {"chosen_inline_result": {"result_id": "1", "from": ANN, "query": "cats"}},
        (None, None, 7),
    ),
    "a reaction": (
        {
            "message_reaction": {
                "chat": GROUP,
                "message_id": 1,
                "user": ANN,
                "date": DATE,
                "old_reaction": [],
                "new_reaction": [LIKE],
            }
        },
        (-100, None, 7),
    ),
    "a reaction in the name of a channel": (
        {
            "message_reaction": {
                "chat": GROUP,
                "message_id": 1,
                "actor_chat": CHANNEL,
                "date": DATE,
                "old_reaction": [],
                "new_reaction": [LIKE],
            }
        },
        (-100, None, None),
    ),
    "a count of reactions": (
        {
            "message_reaction_count": {
                "chat": CHANNEL,
                "message_id": 1,
                "date": DATE,
                "reactions": [{"type": LIKE, "total_count": 3}],
            }
        },
        (-300, None, None),
    ),
    "a change of a member, by who made it": ({"chat_member": MEMBER_UPDATE}, (-100, None, 7)),
    "a change of the bot's own membership": ({"my_chat_member": MEMBER_UPDATE}, (-100, None, 7)),
    "a request to join": (
        {"chat_join_request": {"chat": GROUP, "from": ANN, "user_chat_id": 7, "date": DATE}},
        (-100, None, 7),
    ),
    "a business message": (
        {"business_message": message(PRIVATE, ANN, business_connection_id="b1")},
        (7, None, 7),
    ),
    "an edited business message": (
        {"edited_business_message": message(PRIVATE, ANN, business_connection_id="b1")},
        (7, None, 7),
    ),
    "deleted business messages": (
        {
            "deleted_business_messages": {
                "business_connection_id": "b1",
                "chat": PRIVATE,
                "message_ids": [1],
            }
        },
        (7, None, None),
    ),
    "a business connection": (
        {
            "business_connection": {
                "id": "b1",
                "user": ANN,
                "user_chat_id": 7,
                "date": DATE,
                "is_enabled": True,
            }
        },
        (7, None, 7),
    ),
    "an answer to a poll": (
        {
            "poll_answer": {
                "poll_id": "1",
                "user": ANN,
                "option_ids": [0],
                "option_persistent_ids": ["0"],
            }
        },
        (None, None, 7),
    ),
    "a query before a checkout": (
        {
            "pre_checkout_query": {
                "id": "1",
                "from": ANN,
                "currency": "XTR",
                "total_amount": 1,
                "invoice_payload": "x",
            }
        },
        (None, None, 7),
    ),
    "a boost": (
        {
            "chat_boost": {
                "chat": CHANNEL,
                "boost": {
                    "boost_id": "1",
                    "add_date": DATE,
                    "expiration_date": DATE,
                    "source": {"source": "premium", "user": ANN},
                },
            }
        },
        (-300, None, None),
    ),
    "a poll that nobody in particular changed": (
        {
            "poll": {
                "id": "1",
                "question": "?",
                "options": [],
                "total_voter_count": 0,
                "is_closed": True,
                "is_anonymous": True,
                "type": "regular",
                "allows_multiple_answers": False,
                "allows_revoting": False,
                "members_only": False,
            }
        },
        (None, None, None),
    ),
}


def plain(payload):
    return payload


def aiogram(payload):
    types = pytest.importorskip("aiogram.types")
    return types.Update.model_validate(payload)


def telegram(payload):
    return pytest.importorskip("telegram").Update.de_json(payload, None)


@pytest.fixture(params=[plain, aiogram, telegram], ids=lambda read: read.__name__)
def read(request):
    """Makes an update out of what the Bot API sends."""
    return request.param


@pytest.fixture(params=UPDATES)
def update_and_where(request, read):
    payload, where = UPDATES[request.param]
    update = read({"update_id": 1, **payload})
    assert event_of(read, update, payload) is not None, "the framework did not understand it"
    return update, where


def event_of(read, update, payload):
    """The one event of an update."""
    (kind,) = payload
    if read is plain:
        return update[kind]
    if not hasattr(update, kind):
        pytest.skip(f"this version of the framework does not know {kind}")
    return getattr(update, kind)


def test_chat_user(update_and_where):
    update, (chat, _, user) = update_and_where
    assert ChatUser.extract(update) == (None if user is None else (chat or 0, user))


def test_user(update_and_where):
    update, (_, _, user) = update_and_where
    assert User.extract(update) == (None if user is None else (user,))


def test_chat(update_and_where):
    update, (chat, _, _) = update_and_where
    assert Chat.extract(update) == (None if chat is None else (chat,))


def test_chat_topic(update_and_where):
    update, (chat, thread, _) = update_and_where
    assert ChatTopic.extract(update) == (None if chat is None else (chat, thread or 0))


def test_chat_topic_user(update_and_where):
    update, (chat, thread, user) = update_and_where
    expected = None if chat is None or user is None else (chat, thread or 0, user)
    assert ChatTopicUser.extract(update) == expected


@pytest.mark.parametrize(
    "name",
    [
        "a message in a topic",
        "a message that pins another",
        "a button in a topic",
        "a button under an inline message",
        "an inline query",
        "a reaction",
        "a business connection",
        "a channel post",
    ],
)
def test_the_event_alone_has_the_key_of_its_update(read, name):
    payload, (chat, thread, user) = UPDATES[name]
    event = event_of(read, read({"update_id": 1, **payload}), payload)
    assert ChatUser.extract(event) == (None if user is None else (chat or 0, user))
    assert ChatTopic.extract(event) == (None if chat is None else (chat, thread or 0))


@pytest.mark.parametrize(
    "thing",
    [
        None,
        {},
        {"update_id": 1},
        7,
        "text",
        pytest.param(object(), id="object()"),
        {"message": None},
        {"message": {}},
        {"message": {"chat": {}, "from": {}}},
        {"message": {"chat": {"id": "x"}, "from": {"id": True}}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("strategy", [ChatUser, User, Chat, ChatTopic, ChatTopicUser])
def test_what_is_no_update_has_no_key(strategy, thing):
    assert strategy.extract(thing) is None


def test_a_message_that_says_it_is_in_no_topic_is_in_none():
    said = message(GROUP, ANN, message_thread_id=55, is_topic_message=False)
    assert ChatTopicUser.extract({"message": said}) == (-100, 0, 7)


# -- sessions of any platform ----------------------------------------------------------------------

ROOM = SessionKey("matrix", "shop_bot", "!room:example.org")
THREAD = SessionKey("matrix", "shop_bot", "!room:example.org", "$event")


@pytest.mark.parametrize(
    ("strategy", "room_key", "thread_key"),
    [
        (Chat, (*ROOM[:3],), (*ROOM[:3],)),
        (ChatTopic, (*ROOM[:3], ""), (*ROOM[:3], "$event")),
        (ChatUser, None, None),
        (ChatTopicUser, None, None),
        (User, None, None),
    ],
)
def test_a_session_key_has_a_chat_and_a_topic_and_no_user(strategy, room_key, thread_key):
    for session_key in (ROOM, tuple(ROOM), tuple(ROOM)[:3]):
        assert strategy.extract(session_key) == room_key
    assert strategy.extract(THREAD) == thread_key


async def test_an_arrival_of_any_platform_has_a_key_of_each_kind():
    async with Trunkline("memory://") as line:
        arrival = await line.ingest(
            channel="matrix",
            bridge_id="shop_bot",
            external_room_id="!room:example.org",
            external_user_id="@ada:example.org",
            content="hello",
        )
        again, other, nobody = [
            await line.ingest(
                channel="matrix",
                bridge_id="shop_bot",
                external_room_id="!room:example.org",
                external_user_id=user,
                content="hello",
            )
            for user in ("@ada:example.org", "@bob:example.org", None)
        ]
        await line.fsm.init("bot")
        for strategy in (ChatUser, User, ChatTopicUser):
            key = strategy.extract(arrival)
            assert key == strategy.extract(again)
            assert key != strategy.extract(other)
            assert strategy.extract(nobody) is None
            await line.fsm.set_state("bot", key, "asked")
        for strategy in (Chat, ChatTopic):
            assert strategy.extract(arrival) == strategy.extract(arrival.session_key)
            assert strategy.extract(arrival) == strategy.extract(nobody)


async def test_two_channels_of_whose_posts_nobody_is_the_user_share_no_conversation():
    posts = [{"channel_post": {"chat": {"id": chat_id}}} for chat_id in (-1, -2)]
    async with FSMStore("memory://") as store:
        await store.init("bot")
        for post in posts:
            with pytest.raises(ConfigurationError, match="None is no key"):
                await store.set_state("bot", ChatUser.extract(post), "asked")
