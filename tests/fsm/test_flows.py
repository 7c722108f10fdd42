"""Flows: which step may follow which, and what becomes of one that may not."""

from __future__ import annotations

from enum import Enum, StrEnum

import anyio
import pytest

from trunkline.errors import ConfigurationError, TransitionError
from trunkline.fsm import Flow, FSMContext, FSMState, FSMStore, InvalidTransition

BOT, KEY = "bot", (42, 7)

REGISTER = Flow(
    "register",
    {"get_name": ["get_email"], "get_email": ["confirm", "get_name"], "confirm": []},
    initial="get_name",
)
ORDER = Flow("order", {"choose": ["pay"]}, initial="choose")
SPIN = Flow("spin", {"again": ["again"]}, initial="again")


@pytest.fixture
async def store():
    async with FSMStore("memory://") as store:
        await store.init(BOT)
        yield store


@pytest.fixture
def context(store):
    return FSMContext(store, BOT, KEY, [REGISTER, ORDER, SPIN])


# -- a flow --------------------------------------------------------------------------------------


def test_a_flow_allows_what_it_declares_and_nothing_else():
    assert REGISTER.allows("get_name", "get_email")
    assert REGISTER.allows("get_email", "get_name")
    assert not REGISTER.allows("get_name", "confirm")
    assert not REGISTER.allows("get_name", "get_name")
    assert not REGISTER.allows("confirm", "get_name")
    assert not REGISTER.allows(None, "get_name")
    assert not REGISTER.allows("elsewhere", "get_name")
    assert SPIN.allows("again", "again")


def test_a_state_that_is_only_mentioned_as_a_follower_ends_the_flow():
    assert ORDER.transitions == {"choose": frozenset({"pay"}), "pay": frozenset()}
    assert repr(ORDER) == "<Flow 'order': choose, pay>"


@pytest.mark.parametrize("name", ["", None, 7, b"register"], ids=repr)
def test_a_flow_has_a_name(name):
    with pytest.raises(ConfigurationError, match="a flow's name is a non-empty str"):
        Flow(name, {"a": []}, "a")


@pytest.mark.parametrize("initial", ["c", "", None, ["a"]], ids=repr)
def test_a_flow_starts_in_a_state_of_its_own(initial):
    with pytest.raises(ConfigurationError, match=r"flow 'register' has no state .* to start in"):
        Flow("register", {"a": ["b"]}, initial)


def test_a_flow_may_start_in_a_state_that_is_only_mentioned_as_a_follower():
    assert Flow("register", {"a": ["b"]}, "b").initial == "b"


@pytest.mark.parametrize("following", ["b", None, 7], ids=repr)
def test_the_states_that_follow_are_a_list(following):
    with pytest.raises(ConfigurationError, match="the states after 'a' are a list"):
        Flow("register", {"a": following}, "a")


@pytest.mark.parametrize("transitions", [{"a": ["b", 7]}, {"a": [], 7: []}, {"a": [""]}], ids=repr)
def test_a_state_is_a_string_that_is_not_empty(transitions):
    with pytest.raises(ConfigurationError, match="flow 'register': a state is a non-empty str"):
        Flow("register", transitions, "a")


def test_transitions_are_a_map():
    with pytest.raises(ConfigurationError, match="transitions are a map"):
        Flow("register", [("a", "b")], "a")


def test_a_flow_does_not_change_with_what_it_was_made_of():
    following = ["b"]
    flow = Flow("register", {"a": following}, "a")
    following.append("a")
    assert not flow.allows("a", "a")


# -- a context -----------------------------------------------------------------------------------


async def test_two_flows_of_one_name_are_refused(store):
    with pytest.raises(ConfigurationError, match="two flows named 'order'"):
        FSMContext(store, BOT, KEY, [ORDER, Flow("order", {"a": []}, "a")])


@pytest.mark.parametrize("policy", ["warn", None, 7], ids=repr)
async def test_an_unknown_policy_is_refused(store, policy):
    with pytest.raises(ConfigurationError, match="on_invalid_transition is"):
        FSMContext(store, BOT, KEY, on_invalid_transition=policy)


async def test_where_nothing_is_stored_there_is_no_flow(context):
    assert await context.get_flow() is None
    assert await context.get_state() is None
    assert await context.get_data() == {}


async def test_a_dialogue_from_start_to_end(store, context):
    assert await context.start_flow("register") is True
    assert await context.get_flow() == "register"
    assert await context.get_state() == "get_name"
    assert await context.update_data({"name": "Ada"}, age=36) == {"name": "Ada", "age": 36}
    assert await context.transition("get_email") is True
    assert await context.update_data(email="ada@example.org") == await context.get_data()
    assert await context.transition("confirm") is True
    assert await store.get_state(BOT, KEY) == FSMState(
        "confirm", "register", {"name": "Ada", "age": 36, "email": "ada@example.org"}
    )
    await context.clear()
    assert await store.get_state(BOT, KEY) is None


async def test_a_flow_begins_with_the_data_that_it_is_given_alone(store, context):
    await store.set_data(BOT, KEY, {"old": 1})
    await context.start_flow("order", {"cart": ["tea"]})
    assert await store.get_state(BOT, KEY) == FSMState("choose", "order", {"cart": ["tea"]})


async def test_the_active_flow_can_be_started_anew(store, context):
    await context.start_flow("register")
    await context.transition("get_email")
    await context.update_data(name="Ada")
    assert await context.start_flow("register") is True
    assert await store.get_state(BOT, KEY) == FSMState("get_name", "register", {})


async def test_a_flow_can_be_started_where_there_is_a_state_without_a_flow(store, context):
    await store.set_state(BOT, KEY, "stray")
    assert await context.start_flow("order") is True
    assert await store.get_state(BOT, KEY) == FSMState("choose", "order")


async def test_an_unknown_flow_is_refused_by_name(context):
    with pytest.raises(ConfigurationError, match=r"no flow 'x': known are 'register', 'order'"):
        await context.start_flow("x")


async def test_a_state_can_be_set_whether_declared_or_not(store, context):
    await context.start_flow("register", {"a": 1})
    await context.set_state("confirm")
    assert await store.get_state(BOT, KEY) == FSMState("confirm", "register", {"a": 1})
    await context.set_state(None)
    assert await store.get_state(BOT, KEY) == FSMState(None, "register", {"a": 1})


async def test_contexts_of_two_keys_have_nothing_to_do_with_each_other(store, context):
    other = FSMContext(store, BOT, (42, 8), [REGISTER])
    await context.start_flow("register")
    assert await other.get_flow() is None


# -- steps that are not declared -----------------------------------------------------------------

#: What is done first, the step that is not declared, and how it is reported.
WRONG_STEPS = {
    "a step without a flow": (
        None,
        lambda context: context.transition("get_name"),
        (None, None, "get_name", None),
        "no flow is active for (42, 7): cannot go to 'get_name'",
    ),
    "a step that leaves one out": (
        FSMState("get_name", "register", {"a": 1}),
        lambda context: context.transition("confirm"),
        ("register", "get_name", "confirm", None),
        "flow 'register' does not allow 'get_name' → 'confirm' for (42, 7)",
    ),
    "a step to where it is": (
        FSMState("get_name", "register", {"a": 1}),
        lambda context: context.transition("get_name"),
        ("register", "get_name", "get_name", None),
        "flow 'register' does not allow 'get_name' → 'get_name' for (42, 7)",
    ),
    "a step to nowhere": (
        FSMState("get_name", "register", {"a": 1}),
        lambda context: context.transition("elsewhere"),
        ("register", "get_name", "elsewhere", None),
        "flow 'register' does not allow 'get_name' → 'elsewhere' for (42, 7)",
    ),
    "a step of a flow that the context does not know": (
        FSMState("a", "unknown", {"a": 1}),
        lambda context: context.transition("b"),
        ("unknown", "a", "b", None),
        "flow 'unknown' does not allow 'a' → 'b' for (42, 7)",
    ),
    "another flow": (
        FSMState("get_name", "register", {"a": 1}),
        lambda context: context.start_flow("order", {"b": 2}),
        ("register", "get_name", "choose", "order"),
        "cannot start flow 'order' for (42, 7): 'register' is active",
    ),
}


@pytest.fixture(params=WRONG_STEPS)
async def wrong_step(request, store):
    standing, step, parts, text = WRONG_STEPS[request.param]
    if standing is not None:
        await store.set_state(BOT, KEY, standing)
    yield step, parts, text
    assert await store.get_state(BOT, KEY) == standing, "the step was taken all the same"


async def test_a_wrong_step_raises_by_default(context, wrong_step):
    step, _, text = wrong_step
    with pytest.raises(TransitionError) as refusal:
        await step(context)
    assert str(refusal.value) == text


async def test_a_wrong_step_can_be_logged(store, wrong_step, log):
    step, (flow, from_state, to_state, to_flow), _ = wrong_step
    context = FSMContext(store, BOT, KEY, [REGISTER, ORDER], on_invalid_transition="log")
    assert await step(context) is False
    assert log == [
        {
            "event": "invalid_transition",
            "log_level": "warning",
            "bot_name": BOT,
            "flow": flow,
            "from_state": from_state,
            "to_flow": to_flow,
            "to_state": to_state,
        }
    ]


async def test_a_wrong_step_can_be_ignored(store, wrong_step, log):
    step, _, _ = wrong_step
    context = FSMContext(store, BOT, KEY, [REGISTER, ORDER], on_invalid_transition="ignore")
    assert await step(context) is False
    assert log == []


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_function_can_be_notified_of_a_wrong_step(store, wrong_step, is_async):
    step, parts, text = wrong_step
    told: list[InvalidTransition] = []

    async def tell(invalid):
        await anyio.lowlevel.checkpoint()
        told.append(invalid)

    policy = tell if is_async else told.append
    context = FSMContext(store, BOT, KEY, [REGISTER, ORDER], on_invalid_transition=policy)
    assert await step(context) is False
    (invalid,) = told
    assert (invalid.flow, invalid.from_state, invalid.to_state, invalid.to_flow) == parts
    assert invalid.key == KEY
    assert str(invalid) == text


async def test_what_a_function_raises_comes_out_of_the_step(store, wrong_step):
    def refuse(_invalid):
        raise PermissionError("not now")

    context = FSMContext(store, BOT, KEY, [REGISTER, ORDER], on_invalid_transition=refuse)
    with pytest.raises(PermissionError, match="not now"):
        await wrong_step[0](context)


# -- two updates at once -------------------------------------------------------------------------


async def race(*steps):
    """Take all steps at once; whether each was taken."""
    taken = [None] * len(steps)

    async def take(number, step):
        taken[number] = await step()

    async with anyio.create_task_group() as task_group:
        for number, step in enumerate(steps):
            task_group.start_soon(take, number, step)
    return taken


@pytest.fixture
async def contexts(url):
    """Contexts of one conversation, as the handlers of many updates have them."""
    async with FSMStore(url) as store:
        await store.init(BOT)
        flows = [REGISTER, ORDER, SPIN]
        yield [
            FSMContext(store, BOT, KEY, flows, on_invalid_transition="ignore") for _ in range(16)
        ]


async def test_of_many_updates_at_once_only_one_takes_a_step(contexts):
    for _ in range(5):
        await contexts[0].clear()
        await contexts[0].start_flow("register", {"a": 1})
        taken = await race(*(lambda one=one: one.transition("get_email") for one in contexts))
        assert taken.count(True) == 1
        assert taken.count(False) == 15
        assert await contexts[0].get_state() == "get_email"
        assert await contexts[0].get_data() == {"a": 1}


async def test_of_two_ways_that_part_only_one_is_taken(contexts):
    for _ in range(5):
        await contexts[0].start_flow("register")
        await contexts[0].set_state("get_email")
        taken = await race(
            lambda: contexts[0].transition("confirm"), lambda: contexts[1].transition("get_name")
        )
        # From `confirm` nothing follows, and from `get_name` nothing leads to it.
        assert sorted(taken) == [False, True]
        assert await contexts[0].get_state() == ("confirm" if taken[0] else "get_name")


async def test_a_flow_that_may_step_on_the_spot_lets_everybody_do_so(contexts):
    await contexts[0].start_flow("spin")
    taken = await race(*(lambda one=one: one.transition("again") for one in contexts))
    assert all(taken)


async def test_of_two_flows_that_are_started_at_once_one_is_begun(contexts):
    for _ in range(5):
        await contexts[0].clear()
        begun = await race(
            lambda: contexts[0].start_flow("register", {"flow": "register"}),
            lambda: contexts[1].start_flow("order", {"flow": "order"}),
        )
        assert sorted(begun) == [False, True]
        flow = await contexts[0].get_flow()
        assert flow == ("register" if begun[0] else "order")
        assert await contexts[0].get_data() == {"flow": flow}


async def test_data_that_is_collected_while_a_step_is_taken_is_not_lost(contexts):
    await contexts[0].start_flow("register")
    await race(
        *(lambda one=one, n=n: one.update_data({n: n}) for n, one in enumerate(contexts)),
        lambda: contexts[0].transition("get_email"),
    )
    assert await contexts[0].get_state() == "get_email"
    assert await contexts[0].get_data() == {number: number for number in range(16)}


# -- states of an enum -----------------------------------------------------------------------------


class Step(str, Enum):  # noqa: UP042 - this kind has another `format`
    NAME = "name"
    EMAIL = "email"
    DONE = "done"


class Flows(StrEnum):
    REGISTER = "register"


ENUM_FLOW = Flow(
    Flows.REGISTER, {Step.NAME: [Step.EMAIL], Step.EMAIL: [Step.DONE]}, initial=Step.NAME
)


def test_a_flow_of_enum_members_is_a_flow_of_their_values():
    plain = Flow("register", {"name": ["email"], "email": ["done"]}, initial="name")
    assert ENUM_FLOW.transitions == plain.transitions
    assert repr(ENUM_FLOW) == repr(plain) == "<Flow 'register': name, email, done>"
    assert ENUM_FLOW.allows("name", Step.EMAIL)
    assert plain.allows(Step.NAME, Step.EMAIL)


async def test_steps_of_an_enum_are_taken_stored_and_read_as_their_values(url):
    async with FSMStore(url) as store:
        await store.init(BOT)
        context = FSMContext(store, BOT, KEY, [ENUM_FLOW])
        assert await context.start_flow(Flows.REGISTER)
        assert await store.get_state(BOT, KEY) == FSMState("name", "register")
        assert await context.transition(Step.EMAIL)
        assert await context.get_state() == Step.EMAIL
        assert type(await context.get_state()) is str
        with pytest.raises(TransitionError, match="does not allow 'email'"):
            await context.transition(Step.NAME)
        assert await context.start_flow("register")
        await context.set_state(Step.DONE)
        assert await context.get_state() == "done"
