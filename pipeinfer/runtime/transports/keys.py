"""What members of a cluster have in common, in one file: a CURVE pair and a certificate with its private key. Every
rank is server and client with the same ones: holding them is being a member."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from pipeinfer.runtime.transports import TransportError


@dataclass(frozen=True)
class Keys:
    """A CURVE key pair in Z85, and a self-signed certificate with its private key in PEM (empty where there is none).
    `file` is where they came from; ephemeral keys have none: for loopback only."""

    public: bytes
    secret: bytes = field(repr=False)
    certificate: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    file: Path | None = None

    @classmethod
    def generate(cls, *, certificate: bool = True) -> "Keys":
        """Fresh ephemeral keys. Those without a certificate are made faster, and `tls` cannot use them."""
        if not certificate:
            return cls(*zmq.curve_keypair())
        from pipeinfer.runtime.transports.certificates import new_certificate

        return cls(*zmq.curve_keypair(), *new_certificate())


def write_keys(path: str | Path, *, certificate: bool = True) -> Keys:
    """Make new keys and write them to a new file that only its owner may read. Raises FileExistsError."""
    keys = Keys.generate(certificate=certificate)
    held = {"public": keys.public.decode(), "secret": keys.secret.decode()}
    if certificate:
        held |= {"certificate": keys.certificate, "private_key": keys.private_key}
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(held, file)
    return read_keys(path)


def read_keys(path: str | Path) -> Keys:
    """The keys in a key file, which need no certificate. Raises TransportError when the file is missing, not one, or
    readable by others."""
    path = Path(path)
    try:
        with path.open() as file:
            readable_by_others = os.fstat(file.fileno()).st_mode & 0o077
            held = json.load(file)
        keys = _keys(held, path)
        matching = zmq.curve_public(keys.secret) == keys.public
    except OSError as problem:
        raise TransportError(f"cannot read the key file {path}: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError, AttributeError, zmq.ZMQError) as problem:
        raise TransportError(f"{path} is not a key file; make a new one with write_keys") from problem
    if readable_by_others:
        raise TransportError(f"the key file {path} can be read by others; run `chmod 600 {path}`")
    if not matching:
        raise TransportError(f"the keys in {path} are not a pair; make a new file")
    return keys


def _keys(held: Any, path: Path) -> Keys:
    certificate, private_key = held.get("certificate", ""), held.get("private_key", "")
    if not isinstance(certificate, str) or not isinstance(private_key, str):
        raise TypeError("a certificate that is no text")
    return Keys(held["public"].encode(), held["secret"].encode(), certificate, private_key, path)
