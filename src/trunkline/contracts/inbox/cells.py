"""Each cell of the two tables in `trunkline.turns.session`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import pytest

from trunkline.contracts.inbox.samples import ONE, TWO, Advance, Box, open_box
from trunkline.errors import NotFound, TurnLost
from trunkline.turns import InboxAdapter, TurnPolicy
from trunkline.turns.adapter import Begun
from trunkline.turns.session import ENDING, RETRYING, Session

__all__ = ("CellTests",)

#: Does what a row of the table names to the item, or to its turn, and raises if that is refused.
Event: TypeAlias = Callable[["_Case"], Awaitable[Any]]

_NONE = "-"
_UNKNOWN = "01890000-0000-7000-8000-000000000000"
_ITEM_STATES = (_NONE, "waiting", "running", "retrying", "failed")
_CLAIM_STATES = (_NONE, "running", "retrying", "ending")


class _Case:
    """An item in one state, and its turn, in a session of its own."""

    def __init__(self, box: Box, state: str, advance: Advance, unit_ms: int) -> None:
        self.box = box
        self.key = f"telegram:bot:{state}"
        self.advance = advance
        self.unit_ms = unit_ms
        self.item_id = _UNKNOWN
        #: Of a turn that never was, if there is none.
        self.begun = Begun(
            id=_UNKNOWN,
            session=self.key,
            items=(),
            skipped=(),
            taken=(),
            resumed=frozenset(),
            attempt=1,
            deaths=0,
            urgent=False,
            group=_UNKNOWN,
            steps={},
            error="",
            began_at_ms=0,
        )

    async def prepare(self, state: str) -> None:
        if state == _NONE:
            return
        self.item_id = (await self.box.put("one", self.key, external_id=self.key[-16:])).item_id
        if state == "waiting":
            return
        (self.begun,) = [one for one in await self.box.claim(ONE) if one.session == self.key]
        if state == "retrying":
            await self.box.fail(self.begun)
        elif state == "failed":
            await self.box.fail(self.begun, is_final=True)
        elif state == "ending":
            await self.box.cancel(self.key)

    async def session(self) -> Session:
        found = await self.box.inbox._read(InboxAdapter.peek, [self.key])
        return found.get(self.key, Session())

    async def item_state(self) -> str:
        """The state of the item, the same in its session, its row and every list."""
        session = await self.session()
        states = [
            "waiting" for entry in (*session.waiting, *session.delayed) if entry.id == self.item_id
        ]
        states += [
            claim.state
            for claim in session.claims
            for entry in claim.every_entry
            if entry.id == self.item_id
        ]
        if self.item_id in [row.id for row in await self.box.rows("failed")]:
            states.append("failed")
        assert len(states) <= 1, states
        state = states[0] if states else _NONE
        row = await self.box.inbox._read(InboxAdapter.row, self.item_id)
        assert (row is None) == (state == _NONE)
        listed = {"waiting": "waiting", RETRYING: "waiting", "running": "running"}.get(state)
        for name in ("waiting", "running"):
            ids = [one.id for one in await self.box.rows(name)]
            assert (self.item_id in ids) == (name == listed)
        return state

    async def claim_state(self) -> str:
        """The state of the turn, whatever its id is now; the same for its owner."""
        session = await self.session()
        claims = [claim for claim in session.claims if claim.group == self.begun.group]
        state = claims[0].state if claims else _NONE
        held = {**(await self.box.beat(ONE)).claims, **(await self.box.beat(TWO)).claims}
        ids = [claim.id for claim in claims]
        assert [turn_id for turn_id in held if turn_id in ids] == (
            ids if state in ("running", ENDING) else []
        )
        return state


async def _accept(case: _Case) -> None:
    await _put_again(case, replace=False)


async def _replace(case: _Case) -> None:
    await _put_again(case, replace=True)


async def _put_again(case: _Case, *, replace: bool) -> None:
    # Where nothing is stored, it gets the id that the case looks for.
    item_id = _UNKNOWN if case.item_id == _UNKNOWN else None
    await case.box.put(
        "new", case.key, external_id=case.key[-16:], replace=replace, item_id=item_id
    )


async def _begin(case: _Case) -> None:
    await case.advance(3 * case.unit_ms)
    await case.box.claim(TWO)


async def _finish(case: _Case) -> None:
    await case.box.finish(case.begun)


async def _fail(case: _Case) -> None:
    await case.box.fail(case.begun)


async def _fail_for_good(case: _Case) -> None:
    await case.box.fail(case.begun, is_final=True)


async def _stop(case: _Case) -> None:
    await case.box.stop(case.begun)


async def _forget(case: _Case) -> None:
    await case.box.forget(case.begun)


async def _die(case: _Case) -> None:
    await case.box.bury(ONE)


async def _interrupt(case: _Case) -> None:
    case.box.inbox.adapter.policy = TurnPolicy(
        while_busy="interrupt", quiet_ms=50_000, max_quiet_ms=50_000
    )
    await case.box.put("newer", case.key)


async def _cancel(case: _Case) -> None:
    await case.box.cancel(case.key)


async def _cancel_running(case: _Case) -> None:
    await case.box.cancel(case.key, waiting=False)


async def _expire(case: _Case) -> None:
    case.box.inbox.adapter.policy = TurnPolicy(expire_after_ms=case.unit_ms)
    await case.advance(case.unit_ms + 1)
    await case.box.claim(TWO)


async def _retry(case: _Case) -> None:
    await case.box.retry(case.item_id)


async def _discard(case: _Case) -> bool:
    return await case.box.discard(case.item_id)


async def _end(case: _Case) -> None:
    await case.box.end(case.begun)


class _Refused:
    """An empty cell whose call raises."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error


_LOST, _MISSING = _Refused(TurnLost), _Refused(NotFound)
_SAME = ""

#: event → what becomes of an item that is not stored, waits, runs, waits for another attempt, or
#: has failed.
_ITEM_CELLS: Mapping[str, tuple[Event, tuple[str | _Refused, ...]]] = {
    "accept": (_accept, ("waiting", _SAME, _SAME, _SAME, _SAME)),
    "accept, replace": (_replace, ("waiting", _SAME, _SAME, _SAME, _SAME)),
    "begin": (_begin, (_SAME, "running", _SAME, "running", _SAME)),
    "finish": (_finish, (_LOST, _LOST, _NONE, _LOST, _LOST)),
    "fail, attempts left": (_fail, (_LOST, _LOST, "retrying", _LOST, _LOST)),
    "fail, none left": (_fail_for_good, (_LOST, _LOST, "failed", _LOST, _LOST)),
    "stop": (_stop, (_LOST, _LOST, "retrying", _LOST, _LOST)),
    "forget": (_forget, (_SAME, _SAME, "retrying", _SAME, _SAME)),
    "the owner dies": (_die, (_SAME, _SAME, "retrying", _SAME, _SAME)),
    "interrupt": (_interrupt, (_SAME, _SAME, "waiting", "waiting", _SAME)),
    "cancel": (_cancel, (_SAME, _NONE, _NONE, _NONE, _SAME)),
    "cancel, waiting=False": (_cancel_running, (_SAME, _SAME, _NONE, _NONE, _SAME)),
    "expire": (_expire, (_SAME, _NONE, _SAME, _SAME, _SAME)),
    "retry": (_retry, (_MISSING, _MISSING, _MISSING, _MISSING, "waiting")),
    "discard": (_discard, (_MISSING, _NONE, _SAME, _NONE, _NONE)),
    "end": (_end, (_SAME, _SAME, _SAME, _SAME, _SAME)),
}

#: event → what becomes of a turn that is not, runs, waits for another attempt, or is ending.
_CLAIM_CELLS: Mapping[str, tuple[Event, tuple[str | _Refused, ...]]] = {
    "begin": (_begin, (_SAME, _SAME, "running", _SAME)),
    "finish": (_finish, (_LOST, _NONE, _LOST, _LOST)),
    "fail, attempts left": (_fail, (_LOST, "retrying", _LOST, _LOST)),
    "fail, none left": (_fail_for_good, (_LOST, _NONE, _LOST, _LOST)),
    "stop": (_stop, (_LOST, "retrying", _LOST, _LOST)),
    "forget": (_forget, (_SAME, "retrying", _SAME, _NONE)),
    "the owner dies": (_die, (_SAME, "retrying", _SAME, _NONE)),
    "interrupt": (_interrupt, (_SAME, ENDING, _NONE, _SAME)),
    "cancel": (_cancel, (_SAME, ENDING, _NONE, _SAME)),
    "discard": (_discard, (_MISSING, _SAME, _NONE, _MISSING)),
    "end": (_end, (_SAME, _SAME, _SAME, _NONE)),
}


class CellTests:
    """A part of `InboxContract`."""

    unit_ms: int

    @pytest.mark.parametrize("event", _ITEM_CELLS)
    async def test_each_state_of_an_item(
        self, adapter: InboxAdapter, advance: Advance, event: str
    ) -> None:
        apply, cells = _ITEM_CELLS[event]
        async with open_box(adapter) as box:
            for state, expected in zip(_ITEM_STATES, cells, strict=True):
                case = await self._prepare(box, state, advance)
                assert (state, await case.item_state()) == (state, state)
                await _apply(case, apply, expected)
                wanted = expected if isinstance(expected, str) and expected else state
                assert (state, await case.item_state()) == (state, wanted)

    @pytest.mark.parametrize("event", _CLAIM_CELLS)
    async def test_each_state_of_a_turn(
        self, adapter: InboxAdapter, advance: Advance, event: str
    ) -> None:
        apply, cells = _CLAIM_CELLS[event]
        async with open_box(adapter) as box:
            for state, expected in zip(_CLAIM_STATES, cells, strict=True):
                case = await self._prepare(box, state, advance)
                assert (state, await case.claim_state()) == (state, state)
                await _apply(case, apply, expected)
                wanted = expected if isinstance(expected, str) and expected else state
                assert (state, await case.claim_state()) == (state, wanted)
                if (event, state) == ("begin", "retrying"):
                    (claim,) = (await case.session()).claims
                    assert claim.id != case.begun.id

    async def _prepare(self, box: Box, state: str, advance: Advance) -> _Case:
        # So that what is retried is not due before what expires. And one that died is alive again.
        box.inbox.adapter.policy = TurnPolicy(retry_delay_ms=2 * self.unit_ms)
        await box.register(ONE)
        case = _Case(box, state, advance, self.unit_ms)
        await case.prepare(state)
        return case


async def _apply(case: _Case, apply: Event, expected: str | _Refused) -> None:
    if not isinstance(expected, _Refused):
        await apply(case)
        return
    before = await case.session()
    with pytest.raises(expected.error):
        await apply(case)
    assert await case.session() == before
