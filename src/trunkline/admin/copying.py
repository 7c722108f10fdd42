"""Copying a database to another: all that its stores hold, as it is stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from time import perf_counter

import msgspec

from trunkline.actors.clock import wall_clock_ms
from trunkline.admin.side import STORES, Schema, Shelf, Side, open_side
from trunkline.errors import ConfigurationError, NotFound

__all__ = ("CopyReport", "ShelfCopy", "TargetNotEmpty", "copy_database")


class ShelfCopy(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows of one kind."""

    store: str
    #: What they are: `messages`.
    name: str
    #: Rows that were copied now.
    copied: int
    #: Rows that an earlier copy had brought.
    kept: int
    #: Rows that there are afterwards, on both sides. Conversations that end within the next minute
    #: do not count, since they may have ended on one side and not on the other.
    source: int
    target: int


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was copied, and whether it is all there."""

    #: The URLs without their passwords.
    source_url: str
    target_url: str
    shelves: tuple[ShelfCopy, ...]
    elapsed_ms: int

    @property
    def agrees(self) -> bool:
        """Whether there are as many of everything on both sides."""
        return all(shelf.source == shelf.target for shelf in self.shelves)

    @property
    def copied(self) -> int:
        """Rows that were copied now."""
        return sum(shelf.copied for shelf in self.shelves)

    @property
    def rows_per_second(self) -> int:
        """How many that was in a second."""
        return round(self.copied / max(self.elapsed_ms, 1) * 1000)


class TargetNotEmpty(ConfigurationError):
    """There is something where the copy should go; nothing was changed."""


def copy_database(
    source_url: str,
    target_url: str,
    *,
    only: Collection[str] = (),
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
        source_url: where from: `sqlite:///bot.db`, `postgresql://…`, `redis://…`, `valkey://…`.
        target_url: where to. What is missing there is created.
        only: the stores to copy: `persistence`, `fsm`, `signal`; by default all that are there.
        resume: continue a copy that was interrupted: rows that are there are kept as they are.
        force: delete first what these stores hold in the target.
        on_progress: told after each page what it was of, how many rows are done, and of how many.

    Raises:
        TargetNotEmpty: the target holds something, and neither `resume` nor `force` is given; or
            it holds what the source does not, and so is no copy to be resumed.
        NotFound: the source holds none of these stores.
        ConfigurationError: it can never work: no such file, twice the same database, a schema of
            another version, a target that cannot hold one of the stores.
        StoreUnavailable: a database cannot be reached, or no longer: resume the copy.
    """
    if resume and force:
        raise ConfigurationError("either resume a copy, or force a new one")
    started = perf_counter()
    with ExitStack() as stack:
        source = stack.enter_context(closing(open_side(source_url)))
        target = stack.enter_context(closing(open_side(target_url)))
        source.open()
        if target.exists():
            target.open()
            if source.identity() == target.identity():
                raise ConfigurationError(
                    f"{source.shown_url} and {target.shown_url} are the same database"
                )
        stack.enter_context(source.snapshot())
        copying = _Copying(source, target, _stores(source, target, only), on_progress)
        if not force:
            copying.check_target(resume=resume)
        target.create(copying.stores)
        if force:
            copying.erase_target()
        copying.run(keep=resume)
        return copying.report(perf_counter() - started)


def _stores(source: Side, target: Side, only: Collection[str]) -> list[str]:
    """The stores to copy."""
    schemas = source.stores()
    for store in only:
        if store not in STORES:
            raise ConfigurationError(f"a store is one of {', '.join(STORES)}, not {store!r}")
        if store not in schemas:
            raise NotFound(f"{source.shown_url} holds no {store} store")
    if not schemas:
        raise NotFound(f"{source.shown_url} holds none of trunkline's stores")
    chosen = {store: schema for store, schema in schemas.items() if not only or store in only}
    _require_known(source, chosen)
    for store in [store for store in chosen if store not in target.can_hold]:
        if any(shelf.count(wall_clock_ms()) for shelf in source.shelves(store)):
            raise ConfigurationError(
                f"{target.shown_url} cannot hold the {store} store of {source.shown_url}:"
                " choose which stores to copy"
            )
        del chosen[store]
    return list(chosen)


def _require_known(side: Side, schemas: Mapping[str, Schema]) -> None:
    for store, schema in schemas.items():
        if not schema.is_known:
            raise ConfigurationError(
                f"{side.shown_url} has version {schema.version} of the {store} schema, and this"
                f" trunkline works with version {schema.known_version}"
            )


class _Copying:
    """One copy under way, inside a snapshot of its source."""

    def __init__(
        self,
        source: Side,
        target: Side,
        stores: list[str],
        on_progress: Callable[[str, int, int], object],
    ) -> None:
        self.stores = stores
        self._source = source
        self._target = target
        self._on_progress = on_progress
        # Conversations that had ended by now are left behind.
        self._began_ms = wall_clock_ms()
        self._shelves = [
            (store, *pair)
            for store in stores
            for pair in zip(source.shelves(store), target.shelves(store), strict=True)
        ]
        #: shelf → rows copied, and rows kept.
        self._copied: dict[str, int] = {}
        self._kept: dict[str, int] = {}

    def check_target(self, *, resume: bool) -> None:
        """Refuse a target that holds something, or, to resume, something of its own."""
        if not self._target.exists():
            return
        with self._target.snapshot():
            schemas = self._target.stores()
            _require_known(self._target, {s: schemas[s] for s in self.stores if s in schemas})
            for store, source, target in self._shelves:
                if store not in schemas:
                    continue
                count = target.count(self._began_ms)
                if count and not resume:
                    raise TargetNotEmpty(
                        f"{self._target.shown_url} is not empty: {count:,} rows of {target.name}"
                    )
                strangers = _strangers(source, target, self._began_ms) if count else 0
                if strangers:
                    raise TargetNotEmpty(
                        f"{self._target.shown_url} is no unfinished copy of"
                        f" {self._source.shown_url}, which lacks {strangers:,} of its rows of"
                        f" {target.name}"
                    )

    def erase_target(self) -> None:
        with self._target.transaction():
            for store in self.stores:
                self._target.erase(store)

    def run(self, *, keep: bool) -> None:
        """Copy every row, or, to keep those that are there, the others."""
        done = 0
        total = sum(source.count(self._began_ms) for _, source, _ in self._shelves)
        for _, source, target in self._shelves:
            name = target.name
            self._copied[name] = self._kept[name] = 0
            self._on_progress(name, done, total)
            for page in source.pages(self._began_ms):
                rows = page
                with self._target.transaction():
                    if keep:
                        width = target.key_width
                        present = target.present([row[:width] for row in page])
                        rows = [row for row in page if row[:width] not in present]
                    if rows:
                        target.put(rows)
                done += len(page)
                self._copied[name] += len(rows)
                self._kept[name] += len(page) - len(rows)
                self._on_progress(name, done, total)

    def report(self, elapsed_seconds: float) -> CopyReport:
        at_ms = wall_clock_ms() + _MINUTE_MS
        with self._target.snapshot():
            shelves = tuple(
                ShelfCopy(
                    store=store,
                    name=target.name,
                    copied=self._copied[target.name],
                    kept=self._kept[target.name],
                    source=source.count(at_ms),
                    target=target.count(at_ms),
                )
                for store, source, target in self._shelves
            )
        return CopyReport(
            source_url=self._source.shown_url,
            target_url=self._target.shown_url,
            shelves=shelves,
            elapsed_ms=round(elapsed_seconds * 1000),
        )


_MINUTE_MS = 60_000


def _strangers(source: Shelf, target: Shelf, at_ms: int) -> int:
    """How many rows the target has that the source has not."""
    return sum(len(page) - len(source.present(page)) for page in target.keys(at_ms))
