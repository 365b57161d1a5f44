"""The cluster's CURVE key pair. Every rank is server and client with the same pair: holding it is being a member."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from pipeinfer.runtime.transports import TransportError


@dataclass(frozen=True)
class Keys:
    """A CURVE key pair in Z85. `file` is where it came from; ephemeral keys have none: for loopback only."""

    public: bytes
    secret: bytes = field(repr=False)
    file: Path | None = None

    @classmethod
    def generate(cls) -> "Keys":
        """Fresh ephemeral keys."""
        return cls(*zmq.curve_keypair())


def write_keys(path: str | Path) -> Keys:
    """Make a new pair and write it to a new file that only its owner may read. Raises FileExistsError."""
    keys = Keys.generate()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"public": keys.public.decode(), "secret": keys.secret.decode()}, file)
    return Keys(keys.public, keys.secret, Path(path))


def read_keys(path: str | Path) -> Keys:
    """The pair in a key file. Raises TransportError when it is missing, not one, or readable by others."""
    path = Path(path)
    try:
        with path.open() as file:
            readable_by_others = os.fstat(file.fileno()).st_mode & 0o077
            pair = json.load(file)
        public, secret = pair["public"].encode(), pair["secret"].encode()
        matching = zmq.curve_public(secret) == public
    except OSError as problem:
        raise TransportError(f"cannot read the key file {path}: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError, AttributeError, zmq.ZMQError) as problem:
        raise TransportError(f"{path} is not a key file; make a new one with write_keys") from problem
    if readable_by_others:
        raise TransportError(f"the key file {path} can be read by others; run `chmod 600 {path}`")
    if not matching:
        raise TransportError(f"the keys in {path} are not a pair; make a new file")
    return Keys(public, secret, path)
