"""What an adapter is to a store: something that opens, closes, and commits calls together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trunkline.actors import Call
from trunkline.backends.dump import Schema, Table
from trunkline.errors import ConfigurationError, StoreUnavailable, TrunklineError

if TYPE_CHECKING:
    from trunkline.backends.registry import AdapterOptions

__all__ = ("Adapter",)


class Adapter:
    """Base of every adapter. A domain adds its methods; a store runs them, one at a time.

    Subclass a domain's contract (`PersistenceAdapter`, `FSMAdapter`, `SignalAdapter`,
    `InboxAdapter`) and write its methods plainly: no async, no locks, no threads. All that an
    adapter raises is either a `TrunklineError`, which is the answer to one call, or a bug. What a
    driver raises is not a bug: the adapter translates it.
    """

    #: The store that it is for: `persistence`, `fsm`, `signal`, `inbox`. A contract sets it.
    store: ClassVar[str] = ""

    #: Leads every key, index and lock: adapters of two namespaces never see each other's data.
    namespace: str = "default"

    #: Whether methods wait for I/O. If so the store runs them in a thread of their own, a batch of
    #: calls at a time; if not, at once in the event loop.
    blocking: ClassVar[bool] = True

    #: Methods of the contract that can be served many at a time: one that takes one argument → one
    #: that takes a list of such arguments. It returns as many results; an error in the place of a
    #: result is the answer to that call.
    bulk: ClassVar[Mapping[Callable[..., Any], Callable[..., Any]]] = {}

    #: How many workers may write and read at once, each through a `sibling` of its own. More than
    #: one writer keep the order only of calls that belong together, such as those of one room.
    writers: int = 1
    readers: int = 0

    #: Whether rows of its tables change together: a copy that is resumed writes all of them again.
    is_copied_whole: ClassVar[bool] = False

    #: How long a lock among processes lasts if it is not renewed, in milliseconds; 0 if the
    #: database has no such locks.
    lease_ms: int = 0

    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        """An adapter for `url`, not yet connected. For `register_adapter`.

        Raises:
            ConfigurationError: the URL cannot work.
        """
        raise ConfigurationError(f"{cls.__name__} cannot be opened by a URL")

    def open(self) -> None:
        """Connect, and create or migrate what is stored there. Called again after a crash.

        Raises:
            StoreUnavailable: the server or file cannot be reached.
            ConfigurationError: it never can be like this.
        """

    def close(self) -> None:
        """Release the locks that are still held, connections and files."""

    def sibling(self) -> Self:
        """Another adapter on the same data, with a connection of its own, not yet open.

        Only asked for if `writers + readers` is more than one.
        """
        raise NotImplementedError(f"{type(self).__name__} does not support siblings")

    def redacted(self, error: Exception) -> Exception:
        """An exception that is a bug, as logs may show it: `error` itself unless it has secrets."""
        return error

    def try_lock(self, key: str, token: str) -> bool:
        """Take the lock `key` among processes if it is free; whether it was."""
        raise NotImplementedError(f"{type(self).__name__} has no locks among processes")

    def renew_lock(self, key: str, token: str) -> bool:
        """Let the lease that was taken with `token` last anew; false if it has ended."""
        raise NotImplementedError(f"{type(self).__name__} has no locks among processes")

    def unlock(self, key: str, token: str) -> bool:
        """Give the lock back; false if its lease had ended before."""
        raise NotImplementedError(f"{type(self).__name__} has no locks among processes")

    def perform(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call this adapter's own version of a method of the contract."""
        return getattr(self, method.__name__)(*args)

    def run_together(self, calls: Sequence[Call]) -> None:
        """Run a batch inside a transaction, in its order; each `call.value` takes its result.

        What is raised is raised for the whole batch, which is then rolled back and run again one
        by one. A call that failed and changed nothing has its `error` set instead.

        The default runs one after another, and neighbours of one kind through `bulk`. Override it
        where a database can do better, as a Redis pipeline does.
        """
        for method, group in groupby(calls, key=attrgetter("handler")):
            neighbours = list(group)
            together = self.bulk.get(method)
            if together is None or len(neighbours) == 1 or not self._rolls_back:
                for call in neighbours:
                    self._run_one(call)
            else:
                values = self.perform(together, [call.args[0] for call in neighbours])
                for call, value in zip(neighbours, values, strict=True):
                    if isinstance(value, TrunklineError):
                        call.error = value
                    else:
                        call.value = value

    @property
    def _rolls_back(self) -> bool:
        return type(self).transaction is not Adapter.transaction

    def _run_one(self, call: Call) -> None:
        before = self.changes()
        try:
            call.value = self.perform(call.handler, *call.args)
        except Exception as error:
            # Without a transaction the others are done, and must not be run a second time.
            if self._rolls_back and not (
                isinstance(error, TrunklineError)
                and not isinstance(error, StoreUnavailable)
                and before is not None
                and before == self.changes()
            ):
                raise
            call.error = error

    def changes(self) -> int | None:
        """A number that grows with each change that the transaction under way has made.

        While it stays the same, a call that fails need not be rolled back, and neither need the
        calls beside it. `None` if that is not known, or if the transaction cannot go on.
        """
        return None

    def transaction(self, *, read_only: bool = False) -> AbstractContextManager[None]:
        """Everything called inside is committed together on leaving, or not at all.

        The default does nothing: every call stands for itself.

        Raises:
            ConnectionLost: on leaving, nobody knows whether the commit was done.
            Conflict: another transaction stood in the way; it was rolled back, and trying again
                helps.
            StoreUnavailable: it could not be committed, and was rolled back. On entering, whatever
                is raised is the answer to every call of the batch.
        """
        return nullcontext()

    # What is stored, as tables of rows. An adapter whose data is to be copied overrides `tables`,
    # and what else has a better answer than the default here. Everything but `namespaces` is about
    # the adapter's own namespace.

    @property
    def tables(self) -> Sequence[Table]:
        """What the store keeps; a table that others refer to stands before them.

        Tables, `schema` and `namespaces` are used inside a `snapshot` or a transaction.
        """
        raise ConfigurationError(f"{type(self).__name__} does not support copying")

    def exists(self) -> bool:
        """Whether there is something to connect to. A server may still be unreachable."""
        return True

    def attach(self) -> None:
        """Connect as `open` does, but create, migrate and change nothing.

        Raises:
            StoreUnavailable: the server cannot be reached.
            ConfigurationError: there is no such file, or it is not a database.
        """
        if not self.blocking:
            raise ConfigurationError("what is kept in memory ends with its process")
        self.open()

    def share(self, other: Adapter) -> bool:
        """Use the connection of another adapter on the same database; whether that is possible.

        What both read inside one `snapshot` is then of the same instant.
        """
        return False

    def identity(self) -> str | None:
        """The same for two adapters that lead to one database; `None` if that is not known.

        It keeps a copy from deleting its own source. Without it, `force` is refused between two
        databases of this adapter's class.
        """
        return None

    def snapshot(self) -> AbstractContextManager[None]:
        """What is read inside is of one instant where the database can do that.

        It may take as long as it takes.
        """
        return nullcontext()

    def schema(self) -> Schema | None:
        """The version of what is stored; `None` if nothing of this store is there."""
        return Schema() if self.namespaces() else None

    def namespaces(self) -> list[str]:
        """All namespaces that hold something, sorted."""
        return [self.namespace]
