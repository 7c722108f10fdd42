"""What an adapter is to a store: something that opens, closes, and commits calls together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trunkline.errors import ConfigurationError, TrunklineError

if TYPE_CHECKING:
    from trunkline.backends.registry import AdapterOptions

__all__ = ("Adapter", "Operation")


class Operation:
    """A method of an adapter with its arguments, and what came of it."""

    __slots__ = ("args", "error", "kwargs", "method", "value")

    def __init__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.value: Any = None
        self.error: Exception | None = None

    def run(self, adapter: Adapter) -> Any:
        return getattr(adapter, self.method)(*self.args, **self.kwargs)


class Adapter:
    """Base of every adapter. A domain adds its methods; a store runs them, one at a time.

    Subclass a domain's contract (`PersistenceAdapter`, `FSMAdapter`, `SignalAdapter`) and write its
    methods plainly: no async, no locks, no threads. All that an adapter raises is either a
    `TrunklineError`, which is the answer to one call, or a bug.
    """

    #: The store that it is for: `persistence`, `fsm`, `signal`. A contract sets it.
    store: ClassVar[str] = ""

    #: Leads every key, index and lock: adapters of two namespaces never see each other's data.
    namespace: str = "default"

    #: Whether methods wait for I/O. If so the store runs them in a thread of their own, a batch of
    #: calls at a time; if not, at once in the event loop.
    blocking: ClassVar[bool] = True

    #: Methods that can be served many at a time: the name of one that takes one argument, and the
    #: name of one that takes a list of such arguments and returns as many results; a
    #: `TrunklineError` among them is the answer to its call, which has changed nothing.
    bulk: ClassVar[Mapping[str, str]] = {}

    #: How many workers may write and read at once, each through a `sibling` of its own. More than
    #: one writer keep the order only of calls that belong together, such as those of one room.
    writers: int = 1
    readers: int = 0

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
        raise NotImplementedError(f"{type(self).__name__} says nothing of siblings")

    def shown_bug(self, error: Exception) -> Exception:
        """What may be told of an exception that is a bug: `error` itself, if it holds no secret."""
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

    def run_together(self, operations: Sequence[Operation]) -> None:
        """Run a batch inside a transaction, in its order; `operation.value` takes each result.

        What is raised is raised for the whole batch, which is then rolled back and run again one
        by one. An operation that failed and changed nothing can have its `error` set instead.

        The default runs one after another, and neighbours of one kind through `bulk`. Override it
        where a database can do better, as a Redis pipeline does.
        """
        for method, group in groupby(operations, key=attrgetter("method")):
            neighbours = list(group)
            bulk = self.bulk.get(method)
            if bulk is None or len(neighbours) == 1 or not self._rolls_back:
                for operation in neighbours:
                    self._run_one(operation)
            else:
                values = getattr(self, bulk)([one.args[0] for one in neighbours])
                for operation, value in zip(neighbours, values, strict=True):
                    if isinstance(value, TrunklineError):
                        operation.error = value
                    else:
                        operation.value = value

    @property
    def _rolls_back(self) -> bool:
        return type(self).transaction is not Adapter.transaction

    def _run_one(self, operation: Operation) -> None:
        try:
            operation.value = operation.run(self)
        except Exception as error:
            # Without a transaction the others are done, and must not be run a second time.
            if self._rolls_back:
                raise
            operation.error = error

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
