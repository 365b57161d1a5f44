"""Addresses of transports over TCP: `SCHEME://host:port`, the host by name, as IPv4 or as `[IPv6]`."""

import ipaddress
import socket
from urllib.parse import urlsplit

from pipeinfer.runtime.transports import TransportError, scheme_of


def parse_address(address: str, scheme: str) -> tuple[str, int]:
    """Host, an IPv6 address without its brackets, and port. Raises TransportError where it is anything else or more."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or address.lower() != f"{scheme}://{bracketed(host)}:{port}":
        raise TransportError(
            f'"{address}" is not a {scheme.upper()} address; expected one like {scheme}://127.0.0.1:0 or '
            f"{scheme}://[::1]:0"
        )
    return host, port


def resolved(address: str, scheme: str) -> tuple[str, int]:
    """IP address and port of an address; an IPv4 address where the host has both. Raises TransportError."""
    host, port = parse_address(address, scheme)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        raise TransportError(f'no host "{host}" is known here: {getattr(problem, "strerror", problem)}') from problem
    entry = next((entry for entry in found if entry[0] == socket.AF_INET), found[0])
    return str(entry[4][0]), port


def facing_address(address: str) -> str:
    """An address of the same scheme, at the interface that leads to `address`, with a free port. Raises
    TransportError."""
    scheme = scheme_of(address)
    host, port = resolved(address, scheme)
    try:
        with socket.socket(family_of(host), socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return f"{scheme}://{bracketed(probe.getsockname()[0])}:0"
    except OSError as problem:
        raise TransportError(f"no way leads to {address}: {problem.strerror}") from problem


def check_address(address: str, scheme: str, *, has_key_file: bool) -> tuple[str, int]:
    """Host and port. Raises TransportError when it is no such address, names no host, or needs keys from a file."""
    host, port = parse_address(address, scheme)
    if host in ("*", "0.0.0.0", "::"):
        raise TransportError(f"{address} names no host; give the address at which peers reach this one")
    if not has_key_file and not is_loopback(host):
        raise TransportError(f"{address} is not loopback: give every rank the same key file, by `keys`")
    return host, port


def family_of(host: str) -> socket.AddressFamily:
    """Of an IP address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def bracketed(host: str) -> str:
    """The host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether a host is this one, whatever its name service says."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
