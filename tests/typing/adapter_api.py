"""Adapters: options, registration, and contracts that a subclass must keep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Self

from trunkline.backends import AdapterOptions, register_adapter
from trunkline.signal import SignalAdapter, SignalStore
from trunkline.signal.adapter import Commit, KeyName, Versioned


class EmptyAdapter(SignalAdapter):
    @classmethod
    def from_url(cls, url: str, options: AdapterOptions) -> Self:
        return cls()

    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        return {}

    def commit(self, commit: Commit) -> bool:
        return True

    def names(self) -> Sequence[KeyName]:
        return []


class ForgetfulAdapter(SignalAdapter):
    def get(self, names: Collection[KeyName]) -> dict[KeyName, Versioned]:
        return {}


class WrongAdapter(EmptyAdapter):
    def commit(self, commit: Commit) -> str:  # error: override
        return "done"


def adapters() -> None:
    register_adapter("empty", EmptyAdapter)
    SignalStore(adapter=EmptyAdapter())
    register_adapter("empty", EmptyAdapter())  # error: arg-type
    register_adapter("text", str)  # error: arg-type
    ForgetfulAdapter()  # error: abstract
    SignalStore(adapter=EmptyAdapter)  # error: arg-type


def options() -> None:
    AdapterOptions(namespace="shop", timeout_ms=1_000, clock=lambda: 0)
    AdapterOptions("shop")  # error: call-arg, misc
    AdapterOptions(timeout=1_000)  # error: call-arg
    AdapterOptions(timeout_ms="1 s")  # error: arg-type
    AdapterOptions(clock=0)  # error: arg-type
