"""Credentials of bridges, encrypted at rest."""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec
from msgspec.structs import replace

from trunkline.backends.cipher import Cipher, EncryptionKey
from trunkline.errors import ConfigurationError, InvalidModel
from trunkline.persistence.models import BridgeConfig

__all__ = ("CredentialsCipher", "LockedCredentials")

#: The only name in credentials that are encrypted; its value is the token of the cipher.
_ENCRYPTED = "$trunkline-fernet"


class LockedCredentials(dict[str, Any]):
    """Credentials that cannot be decrypted: reading them raises `ConfigurationError`.

    So one bridge with another key does not keep a list of bridges from being read. Saving such a
    configuration again keeps its credentials as they are stored.
    """

    def __init__(self, stored: dict[str, Any], problem: str) -> None:
        super().__init__(stored)
        self._problem = problem

    def _refuse(self, *_args: object) -> NoReturn:
        raise ConfigurationError(self._problem)

    __getitem__ = __iter__ = __contains__ = __len__ = __or__ = _refuse
    get = keys = values = items = copy = pop = _refuse

    def __repr__(self) -> str:
        return "***"


class CredentialsCipher:
    """Encrypts the credentials of configurations on their way in, and decrypts them on the way out.

    Args:
        key: see `PersistenceStore`. Without one, credentials are stored as they are.

    Raises:
        ConfigurationError: no key, or the extra `crypto` is not installed.
    """

    def __init__(self, key: EncryptionKey | None) -> None:
        self._cipher = None if key is None else Cipher(key)

    def encrypt(self, config: BridgeConfig) -> BridgeConfig:
        """Raises `InvalidModel` for credentials that look like encrypted ones."""
        if _ENCRYPTED in config.credentials:
            raise InvalidModel(f"credentials of bridge {config.id!r} are encrypted already")
        if self._cipher is None or not config.credentials:
            return config
        token = self._cipher.encrypt(msgspec.json.encode(config.credentials))
        return replace(config, credentials={_ENCRYPTED: token})

    def decrypt(self, config: BridgeConfig) -> BridgeConfig:
        """Raises `ConfigurationError` if there is no key, or none that fits."""
        token = config.credentials.get(_ENCRYPTED)
        if token is None:
            return config
        if self._cipher is None:
            raise ConfigurationError(
                f"credentials of bridge {config.id!r} are encrypted: give encryption_key="
            )
        plain = self._cipher.decrypt(str(token), f"credentials of bridge {config.id!r}")
        return replace(config, credentials=msgspec.json.decode(plain))

    def decrypt_or_lock(self, config: BridgeConfig) -> BridgeConfig:
        """As `decrypt`, with `LockedCredentials` where that raises."""
        try:
            return self.decrypt(config)
        except ConfigurationError as error:
            locked = LockedCredentials(config.credentials, str(error))
        return replace(config, credentials=locked)
