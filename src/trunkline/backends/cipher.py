"""Encryption at rest: Fernet (AES-128-CBC with HMAC-SHA256), from the `cryptography` package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from trunkline.errors import ConfigurationError

__all__ = ("Cipher", "EncryptionKey")

#: A Fernet key (32 bytes in URL-safe base64, `Fernet.generate_key()`), or several: the first
#: encrypts, all decrypt, so that a key can be rotated by putting a new one in front.
EncryptionKey: TypeAlias = str | bytes | Sequence[str | bytes]


class Cipher:
    """Encrypts with the first of its keys and decrypts with whichever fits.

    Raises:
        ConfigurationError: a key that is none, or the extra `crypto` is not installed.
    """

    def __init__(self, key: EncryptionKey) -> None:
        try:
            from cryptography.fernet import Fernet, InvalidToken, MultiFernet
        except ModuleNotFoundError:
            raise ConfigurationError(
                "encryption_key= needs cryptography: pip install 'trunkline[crypto]'"
            ) from None
        try:
            keys = [key] if isinstance(key, str | bytes) else list(key)
            self._fernet = MultiFernet([Fernet(one) for one in keys])
        except (ValueError, TypeError):
            # The key stays out of the message.
            raise ConfigurationError(
                "encryption_key is no Fernet key: make one with Fernet.generate_key()"
            ) from None
        self._invalid_token = InvalidToken

    def encrypt(self, plain: bytes) -> str:
        return self._fernet.encrypt(plain).decode()

    def decrypt(self, token: str, what: str) -> bytes:
        """The plain bytes of `token`; `what` names it in the error.

        Raises:
            ConfigurationError: none of the keys fits.
        """
        try:
            return self._fernet.decrypt(token)
        except (self._invalid_token, ValueError):
            raise ConfigurationError(
                f"{what} cannot be decrypted with this encryption_key"
            ) from None
