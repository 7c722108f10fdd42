"""Copying a database to another: all that its stores hold, as it is stored."""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import perf_counter
from typing import NamedTuple

import msgspec

from trunkline.actors.clock import wall_clock_ms
from trunkline.admin.endpoint import Endpoint
from trunkline.backends import Table
from trunkline.errors import ConfigurationError, NotFound

__all__ = ("CopyReport", "TableCopy", "TargetNotEmpty", "copy_database")


class TableCopy(msgspec.Struct, frozen=True, kw_only=True):
    """How the rows of one table were copied."""

    store: str
    namespace: str
    #: What they are: `messages`.
    name: str
    #: Rows that were copied now.
    copied: int
    #: Rows that an earlier copy had brought.
    kept: int
    #: Rows that there are afterwards at both ends. Conversations that end within the next minute
    #: do not count, since they may have ended at one end and not at the other.
    source: int
    target: int


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was copied, and whether it is all there."""

    #: The URLs without their passwords.
    source_url: str
    target_url: str
    tables: tuple[TableCopy, ...]
    elapsed_ms: int

    @property
    def agrees(self) -> bool:
        """Whether there are as many of everything at both ends."""
        return all(table.source == table.target for table in self.tables)

    @property
    def copied(self) -> int:
        """Rows that were copied now."""
        return sum(table.copied for table in self.tables)

    @property
    def rows_per_second(self) -> int:
        """How many that was in a second."""
        return round(self.copied / max(self.elapsed_ms, 1) * 1000)


class TargetNotEmpty(ConfigurationError):
    """The target holds rows that the copy would mix with; nothing was changed."""


def copy_database(
    source_url: str,
    target_url: str,
    *,
    only: Collection[str] = (),
    namespace: str | None = None,
    resume: bool = False,
    force: bool = False,
    on_progress: Callable[[str, int, int], object] = lambda name, done, total: None,
) -> CopyReport:
    """Copy what the stores of a database hold to another database.

    Rows are copied as they are: ids, versions, instants at which conversations end; what is
    encrypted stays encrypted with the same key. A SQL database is copied as it is at one instant,
    also while a bot works on it. A page of rows is read and written at a time, so that memory does
    not depend on how many there are.

    Args:
        source_url: where from: `sqlite:///bot.db`, `postgresql://…`, `redis://…`, `valkey://…`, or
            a scheme that the program has registered.
        target_url: where to. What is missing there is created.
        only: the stores to copy: `persistence`, `fsm`, `signal`, `inbox`; by default all that are
            there.
        namespace: the namespace to copy; by default all that are there.
        resume: continue a copy that was interrupted: rows that are there are kept as they are,
            but those of the inbox, which are written again.
        force: delete first what these stores hold in the target, in these namespaces.
        on_progress: called after each page with the table, how many rows are done, and of how many.

    Raises:
        TargetNotEmpty: the target holds something, and neither `resume` nor `force` is given; or
            it holds what the source does not, and so is no copy to be resumed.
        NotFound: the source holds none of these stores, or nothing in the namespace.
        ConfigurationError: it can never work: no such file, twice the same database, a schema of
            another version, a target that cannot hold one of the stores. Or `force` was given,
            and it is unknown whether it is twice the same database.
        StoreUnavailable: a database cannot be reached, or no longer: resume the copy.
    """
    if resume and force:
        raise ConfigurationError("either resume a copy, or force a new one")
    started = perf_counter()
    with Endpoint(source_url) as source, source.snapshot():
        with Endpoint(target_url) as target, target.snapshot():
            is_there = target.exists()
            is_same = is_there and source.is_same_as(target)
            if is_same:
                raise ConfigurationError(
                    f"{source.shown_url} and {target.shown_url} are the same database"
                )
            if is_same is None and force:  # the rows that it deletes may be the source's
                raise ConfigurationError(
                    f"{source.shown_url} and {target.shown_url} may be the same database: their"
                    " adapter has no identity(); copy to an empty one"
                )
            stores = _stores(source, target, only, namespace)
            copying = _Copying(source, stores, namespace, on_progress)
            if is_there and not force:
                copying.check_target(target, resume=resume)
        with Endpoint(target_url, create=True, timeout_ms=_TARGET_TIMEOUT_MS) as target:
            if force:
                copying.erase(target)
            copying.run(target, keep=resume)
            return copying.report(target, perf_counter() - started)


#: How long a page may take to be written, or a lock on the target to be released.
_TARGET_TIMEOUT_MS = 60_000

_MINUTE_MS = 60_000


def _stores(
    source: Endpoint, target: Endpoint, only: Collection[str], namespace: str | None
) -> list[str]:
    """The stores to copy."""
    for store in only:
        if store not in source.can_hold:
            known = ", ".join(source.can_hold)
            raise ConfigurationError(f"a store of {source.shown_url} is {known}, not {store!r}")
    schemas = source.schemas()
    if not schemas:
        raise NotFound(f"{source.shown_url} holds none of trunkline's stores")
    for store in only:
        if store not in schemas:
            raise NotFound(f"{source.shown_url} holds no {store} store")
    chosen = {store: schema for store, schema in schemas.items() if not only or store in only}
    source.require_known(chosen)
    for store in [store for store in chosen if store not in target.can_hold]:
        if any(part.table.count(wall_clock_ms()) for part in _parts(source, [store], namespace)):
            raise ConfigurationError(
                f"{target.shown_url} cannot hold the {store} store of {source.shown_url}:"
                " choose which stores to copy"
            )
        del chosen[store]
    return list(chosen)


class _Part(NamedTuple):
    """A table of a store in one namespace."""

    store: str
    namespace: str
    table: Table

    def at(self, endpoint: Endpoint) -> Table:
        """The same table at another endpoint, whether it holds anything or not."""
        for table in endpoint.adapter(self.store, self.namespace).tables:
            if (table.name, table.key_width) == (self.table.name, self.table.key_width):
                return table
        raise ConfigurationError(f"{endpoint.shown_url} has no table of {self.table.name}")


def _parts(endpoint: Endpoint, stores: Collection[str], namespace: str | None) -> list[_Part]:
    """What an endpoint holds; a table that others refer to stands before them."""
    return [
        _Part(store, name, table)
        for name in endpoint.namespaces(stores, namespace)
        for store in stores
        for table in endpoint.adapter(store, name).tables
    ]


class _Copying:
    """One copy under way, inside a snapshot of its source."""

    def __init__(
        self,
        source: Endpoint,
        stores: list[str],
        namespace: str | None,
        on_progress: Callable[[str, int, int], object],
    ) -> None:
        self._source = source
        self._stores = stores
        self._namespace = namespace
        self._on_progress = on_progress
        # Conversations that had ended by now are left behind.
        self._began_ms = wall_clock_ms()
        self._parts = _parts(source, stores, namespace)
        if not self._parts and stores:
            raise NotFound(f"{source.shown_url} holds nothing in the namespace {namespace!r}")
        #: Of each part: rows copied, and rows kept.
        self._done: list[tuple[int, int]] = []

    def check_target(self, target: Endpoint, *, resume: bool) -> None:
        """Refuse a target that holds something, or, to resume, something of its own."""
        schemas = target.schemas()
        present = {store: schemas[store] for store in self._stores if store in schemas}
        target.require_known(present)
        for part in _parts(target, present, self._namespace):
            count = part.table.count(self._began_ms)
            if count and not resume:
                raise TargetNotEmpty(
                    f"{target.shown_url} is not empty: {count:,} rows of {part.table.name}"
                )
            missing = count and self._missing_from_source(part)
            if missing:
                raise TargetNotEmpty(
                    f"{target.shown_url} is not an unfinished copy of {self._source.shown_url},"
                    f" which lacks {missing:,} of its rows of {part.table.name}"
                )

    def _missing_from_source(self, part: _Part) -> int:
        """How many rows of the target the source does not have."""
        source = part.at(self._source)
        pages = part.table.dump(self._began_ms, keys_only=True)
        return sum(len(page) - len(source.present(page)) for page in pages)

    def erase(self, target: Endpoint) -> None:
        """Delete what the stores hold, of one namespace if one is copied."""
        for part in self._parts:
            part.at(target)  # raises before anything is deleted
        with target.snapshot():
            parts = _parts(target, self._stores, self._namespace)
        for part in reversed(parts):
            with target.adapter(part.store, part.namespace).transaction():
                part.table.erase()

    def run(self, target: Endpoint, *, keep: bool) -> None:
        """Copy every row, or, to keep those that are there, the others.

        A stale row that is kept does no harm, unless it is one of a store that is copied whole.
        """
        done = 0
        total = sum(part.table.count(self._began_ms) for part in self._parts)
        for part in self._parts:
            adapter, table = target.adapter(part.store, part.namespace), part.at(target)
            copied = kept = 0
            self._on_progress(table.name, done, total)
            for page in part.table.dump(self._began_ms):
                rows = page
                with adapter.transaction():
                    if keep and not adapter.is_copied_whole:
                        width = table.key_width
                        present = table.present([row[:width] for row in page])
                        rows = [row for row in page if row[:width] not in present]
                    if rows:
                        table.load(rows)
                done += len(page)
                copied += len(rows)
                kept += len(page) - len(rows)
                self._on_progress(table.name, done, total)
            self._done.append((copied, kept))

    def report(self, target: Endpoint, elapsed_seconds: float) -> CopyReport:
        at_ms = wall_clock_ms() + _MINUTE_MS
        with target.snapshot():
            tables = tuple(
                TableCopy(
                    store=part.store,
                    namespace=part.namespace,
                    name=part.table.name,
                    copied=copied,
                    kept=kept,
                    source=part.table.count(at_ms),
                    target=part.at(target).count(at_ms),
                )
                for part, (copied, kept) in zip(self._parts, self._done, strict=True)
            )
        return CopyReport(
            source_url=self._source.shown_url,
            target_url=target.shown_url,
            tables=tables,
            elapsed_ms=round(elapsed_seconds * 1000),
        )
