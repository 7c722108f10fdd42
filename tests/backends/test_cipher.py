"""Encryption at rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography.fernet import Fernet

from trunkline.backends.cipher import Cipher
from trunkline.errors import ConfigurationError

OLD, NEW = Fernet.generate_key(), Fernet.generate_key()


@pytest.mark.parametrize(
    "key",
    [OLD, OLD.decode(), [OLD], (OLD.decode(),)],
    ids=["bytes", "str", "list", "tuple"],
)
def test_what_was_encrypted_can_be_decrypted(key):
    cipher = Cipher(key)
    assert cipher.decrypt(cipher.encrypt(b"hunter2"), "it") == b"hunter2"


def test_what_is_encrypted_does_not_show_what_it_was():
    assert "hunter2" not in Cipher(OLD).encrypt(b"hunter2")


def test_a_new_key_in_front_encrypts_and_the_old_one_still_decrypts():
    token = Cipher(OLD).encrypt(b"hunter2")
    rotated = Cipher([NEW, OLD])
    assert rotated.decrypt(token, "it") == b"hunter2"
    assert Cipher(NEW).decrypt(rotated.encrypt(b"hunter3"), "it") == b"hunter3"


@pytest.mark.parametrize("spoil", [lambda token: token[:-8], lambda token: "é" + token, str.lower])
def test_a_spoiled_token_is_refused_with_the_name_of_what_it_is(spoil):
    cipher = Cipher(OLD)
    with pytest.raises(ConfigurationError, match="the secret of bob cannot be decrypted"):
        cipher.decrypt(spoil(cipher.encrypt(b"hunter2")), "the secret of bob")


def test_a_wrong_key_is_refused_and_neither_key_nor_token_are_shown():
    token = Cipher(OLD).encrypt(b"hunter2")
    with pytest.raises(ConfigurationError, match="with this encryption_key") as refused:
        Cipher(NEW).decrypt(token, "it")
    assert token not in str(refused.value)
    assert NEW.decode() not in str(refused.value)


@pytest.mark.parametrize("key", ["hunter2", b"", "é", [], [OLD, "hunter2"], 42, None, [None]])
def test_what_is_no_key_is_refused_and_not_shown(key):
    with pytest.raises(ConfigurationError, match=r"Fernet\.generate_key\(\)") as refused:
        Cipher(key)
    assert "hunter2" not in str(refused.value)


def test_without_the_package_the_extra_is_named():
    program = (
        "import sys; sys.modules['cryptography'] = sys.modules['cryptography.fernet'] = None\n"
        "from trunkline.backends.cipher import Cipher\n"
        "try: Cipher('key')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert run.stdout.startswith("ConfigurationError encryption_key= needs cryptography")
    assert "pip install 'trunkline[crypto]'" in run.stdout
