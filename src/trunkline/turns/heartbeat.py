"""The threads of a runner: one says that the process is alive, one listens for notices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from trunkline.actors.future import call_soon_from_thread
from trunkline.actors.log import Log
from trunkline.errors import TrunklineError
from trunkline.turns.adapter import Beat, InboxAdapter, Owner
from trunkline.turns.process import has_ended

__all__ = ("Heartbeat", "Listener")

_log = Log("trunkline.turns")

#: How often the thread looks for processes of this machine that have ended, in seconds.
_LOOK_SECONDS = 0.5

#: An event loop that has not run for so long is given up: its turns are taken over.
_LONGEST_BLOCK_SECONDS = 60.0

#: How long one wait for a notice takes, in milliseconds, and the pause after an error, in seconds.
_WAIT_MS, _PAUSE_SECONDS = 100, 0.5


class _Background:
    """A thread with a connection of its own, which reports to the event loop that started it."""

    def __init__(self, name: str, adapter: InboxAdapter) -> None:
        self._adapter = adapter
        self._stopped = threading.Event()
        self._soon = call_soon_from_thread()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon."""
        self._stopped.set()

    def join(self, seconds: float) -> None:
        """Wait for its end, but not for a server that does not answer."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            self._run()
        finally:
            try:
                self._adapter.close()
            except TrunklineError:
                pass  # the server is away, and so is the connection

    def _run(self) -> None:
        raise NotImplementedError

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._soon(function, *args)
        except RuntimeError:
            self._stopped.set()  # the event loop has ended


class Heartbeat(_Background):
    """Beats for one owner, and watches the others.

    Nobody compares clocks: an owner is dead when its counter stood still for a lease, as seen from
    here, or when its process has ended on this machine.

    Args:
        adapter: a sibling of the store's.
        owner: this process.
        on_beat: called in the event loop with what each heartbeat brought.
        on_dead: called in the event loop with the id of an owner that is dead.
    """

    def __init__(
        self,
        adapter: InboxAdapter,
        owner: Owner,
        on_beat: Callable[[Beat], object],
        on_dead: Callable[[str], object],
    ) -> None:
        super().__init__(f"trunkline: heartbeat of {owner.id}", adapter)
        self._owner = owner
        self._on_beat = on_beat
        self._on_dead = on_dead
        self._ticked = monotonic()
        self._is_asked = False
        #: owner → its counter, and since when it stands still.
        self._seen: dict[str, tuple[int, float]] = {}
        self._others: dict[str, Owner] = {}

    def beat_soon(self) -> None:
        """Other processes have changed something: there may be new ones among them."""
        self._is_asked = True

    def _run(self) -> None:
        interval = self._owner.lease_ms / 3000
        beat_at = looked_at = monotonic()
        pause = min(_LOOK_SECONDS, interval)
        while not self._stopped.is_set():
            now = monotonic()
            if now - looked_at > max(3 * pause, interval):
                self._seen.clear()  # this process stood still itself
            looked_at = now
            if now >= beat_at or self._is_asked:
                self._is_asked = False
                beat_at = now + interval
                self._beat()
            for owner in [*self._others.values()]:
                if has_ended(owner.process):
                    del self._others[owner.id]
                    self._tell(self._on_dead, owner.id)
            self._stopped.wait(pause)

    def _beat(self) -> None:
        self._tell(self._tick)
        if monotonic() - self._ticked > _LONGEST_BLOCK_SECONDS:
            return
        try:
            with self._adapter.transaction():
                beat = self._adapter.beat(self._owner.id)
        except Exception as error:
            # While the store is away, nobody can be told apart from the dead.
            self._seen.clear()
            _log.debug("heartbeat_failed", owner=self._owner.id, error=repr(error))
            return
        self._watch(beat)
        self._tell(self._on_beat, beat)

    def _tick(self) -> None:
        self._ticked = monotonic()

    def _watch(self, beat: Beat) -> None:
        now = monotonic()
        known = {owner.id for owner in beat.owners}
        self._seen = {key: value for key, value in self._seen.items() if key in known}
        self._others = {}
        for owner in beat.owners:
            if owner.id == self._owner.id:
                continue
            counter, since = self._seen.get(owner.id, (-1, now))
            if counter != owner.beat:
                self._seen[owner.id] = (owner.beat, now)
            if owner.is_buried or (counter == owner.beat and (now - since) * 1000 > owner.lease_ms):
                # Also of one that was buried before: it may have begun a turn meanwhile.
                self._tell(self._on_dead, owner.id)
            else:
                self._others[owner.id] = owner


class Listener(_Background):
    """Waits for notices of other processes.

    Args:
        adapter: a sibling of the store's.
        on_notice: called in the event loop.
    """

    def __init__(self, adapter: InboxAdapter, on_notice: Callable[[], object]) -> None:
        super().__init__("trunkline: listener", adapter)
        self._on_notice = on_notice

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._adapter.wait(_WAIT_MS):
                    self._tell(self._on_notice)
            except Exception as error:
                _log.debug("listening_failed", error=repr(error))
                self._stopped.wait(_PAUSE_SECONDS)
