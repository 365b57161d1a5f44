"""A cluster's certificate, self-signed, and the TLS contexts of its members.

Nobody vouches for anybody: the only certificate that is trusted is the cluster's own, byte for byte, and whoever proves
to hold its private key is a member. It names no host and does not expire, as the CURVE pair does not: clocks of nodes
may be wrong, and a new key file is how members are shut out.
"""

import os
import ssl
import tempfile
from datetime import UTC, datetime
from typing import IO

from pipeinfer.runtime.transports import TransportError
from pipeinfer.runtime.transports.keys import Keys

NAME = "pipeinfer cluster"


def new_certificate() -> tuple[str, str]:
    """A certificate and its private key (P-256) in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))  # RFC 5280: it has no end
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    private_key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), private_key.decode()


class Members:
    """Who may connect, and how: the TLS contexts of the end that connects and of the one that accepts. Raises
    TransportError where the keys have no certificate, or one that is broken."""

    def __init__(self, keys: Keys) -> None:
        if not keys.certificate:
            raise TransportError(f"{keys.file or 'these keys'}: no certificate in it, which tls needs; make a new file")
        try:
            self._certificate = ssl.PEM_cert_to_DER_cert(keys.certificate)
            self.connecting = _context(ssl.PROTOCOL_TLS_CLIENT, keys)
            self.accepting = _context(ssl.PROTOCOL_TLS_SERVER, keys)
        except (ssl.SSLError, ValueError) as problem:
            text = f"the certificate in {keys.file} is of no use ({problem}); make a new file"
            raise TransportError(text) from problem
        self.accepting.num_tickets = 0  # No connection is ever resumed.

    def includes(self, session: ssl.SSLObject) -> bool:
        """Whether the other end showed the cluster's own certificate, and not one that was made with its key."""
        return session.getpeercert(binary_form=True) == self._certificate


def _context(protocol: int, keys: Keys) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=keys.certificate)
    with _nameless_file() as file:  # The library reads these from files alone.
        file.write(keys.certificate + keys.private_key)
        file.flush()
        context.load_cert_chain(f"/dev/fd/{file.fileno()}")
    return context


def _nameless_file() -> IO[str]:
    """One that nobody else can open, and that nothing is left of. In memory where the system has such files: to find a
    folder, Python makes a file there, which stays if the process is ended just then."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("certificate"), "w")
    return tempfile.TemporaryFile("w")
