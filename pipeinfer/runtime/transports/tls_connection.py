"""One TLS connection over a socket that never blocks: what is to leave is encrypted at once and kept until the socket
takes it, what came is decrypted and cut into messages."""

import socket
import ssl
import threading
from collections import deque
from typing import cast

from pipeinfer.runtime.transports.certificates import Members
from pipeinfer.runtime.transports.message_reader import LENGTH, MessageReader, Take, start_of_message

PIECE = 64 * 1024
"""Bytes that are encrypted, and those that are read, at a time: four records, and nothing has to be moved twice."""

TURN = 64
"""Pieces that are read before the others have their turn."""

SMALL = 16 * 1024
"""A message up to this size is one record and one call of the system; it is put together by a copy."""


BEAT = b"."
"""The word of a process that runs."""


class Hangup(Exception):  # noqa: N818 - reads as what happened
    """The connection is over: the other end closed it, or is no member."""


class TlsConnection:
    """Either end of a connection, from the start of its handshake on. Raises Hangup where it is over. For one thread,
    but that another may call `beat`."""

    def __init__(self, connection: socket.socket, members: Members, max_payload: int, *, accepted: bool) -> None:
        self.socket = connection
        self.shaken = False
        """Whether both ends know each other to be members."""
        self.behind = False
        """Whether more had come than was taken last."""
        self._turn = threading.RLock()
        """OpenSSL takes one thread at a time."""
        self._members = members
        self._came = ssl.MemoryBIO()
        self._leaving = ssl.MemoryBIO()
        context = members.accepting if accepted else members.connecting
        self._tls = context.wrap_bio(self._came, self._leaving, server_side=accepted)
        self._reader = MessageReader(max_payload)
        self.unsent: deque[bytes | memoryview] = deque()
        """What waits for the socket to take it."""
        self._buffer = bytearray(PIECE)
        self._view = memoryview(self._buffer)

    def shake(self) -> None:
        """Go on with the handshake, as far as what has come allows."""
        with self._turn:
            try:
                self._tls.do_handshake()
                self.shaken = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as problem:
                self._hand_over()  # the alert, for an end that may want to know
                raise Hangup(str(problem)) from problem
            self._hand_over()
        if self.shaken and not self._members.includes(self._tls):
            raise Hangup("a certificate that is not the cluster's")

    def send(self, first: bytes, payload: bytes | memoryview, size: int) -> None:
        """Encrypt a message and let the socket take what it takes now. Only after the handshake."""
        if size <= SMALL:
            self._tls.write(b"".join((LENGTH.pack(len(first)), first, payload)))
            self.unsent.append(self._leaving.read())
        else:
            self._encrypt(start_of_message(first))
            rest = memoryview(payload).cast("B")
            for at in range(0, size, PIECE):
                self._encrypt(rest[at : at + PIECE])
        self.flush()

    def send_word(self, word: bytes) -> None:
        """Something that is no message."""
        with self._turn:
            self._encrypt(word)
            self.flush()

    def beat(self) -> None:
        """Say that this process runs, unless the other end has not taken yet what was said before."""
        with self._turn:
            self.flush()
            if self.shaken and not self.unsent:
                self.send_word(BEAT)

    def flush(self) -> None:
        """Let the socket take what it takes. That it is broken is found by whoever reads from it."""
        with self._turn:
            try:
                while self.unsent:
                    piece = self.unsent[0]
                    sent = self.socket.send(piece)
                    if sent < len(piece):
                        self.unsent[0] = memoryview(piece)[sent:]
                        return
                    self.unsent.popleft()
            except BlockingIOError:
                return
            except OSError:
                self.unsent.clear()

    def hear(self, take: Take) -> None:
        """Give away the messages that are whole by now; not all of them where very much has come. Raises BadFrame and
        Hangup, after those before it, and what `take` raises."""
        self.behind = False
        for _ in range(TURN):
            size = self._receive()
            self._came.write(self._view[:size])
            if not self.shaken:
                self.shake()
            with self._turn:
                self._take_all(take)
            if size < PIECE:
                return
        self.behind = True

    def _take_all(self, take: Take) -> None:
        while self.shaken and (self._came.pending or self._tls.pending()):
            try:
                self._decrypt(take)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as problem:
                raise Hangup(str(problem)) from problem
        if self._leaving.pending:
            self._hand_over()

    def discard(self) -> None:
        """Take what has come, and forget it. Raises Hangup."""
        self._receive()

    def words(self) -> set[bytes]:
        """What came that is no message, each word once; empty where only the handshake went on."""
        self._read()
        if not self.shaken:
            self.shake()
        words: set[bytes] = set()
        try:
            while self.shaken and (word := self._tls.read(PIECE)):
                words.add(word)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as problem:
            raise Hangup(str(problem)) from problem
        return words

    def _read(self) -> int:
        size = self._receive()
        self._came.write(self._view[:size])
        return size

    def _receive(self) -> int:
        """Bytes that are in the buffer now."""
        try:
            size = self.socket.recv_into(self._buffer)
        except BlockingIOError:
            return 0
        except OSError as problem:
            raise Hangup(str(problem)) from problem
        if not size:
            raise Hangup("closed")
        return size

    def _decrypt(self, take: Take) -> None:
        if self._reader.hole is not None:
            size = cast(int, self._tls.read(len(self._reader.hole), self._reader.hole))
            self._reader.filled(size, take)
            return
        data = self._tls.read(PIECE)
        if not data:
            raise Hangup("closed")
        self._reader.feed(data, take)

    def _encrypt(self, data: bytes | memoryview) -> None:
        self._tls.write(data)
        self.unsent.append(self._leaving.read())

    def _hand_over(self) -> None:
        """What the protocol itself has to say."""
        if self._leaving.pending:
            self.unsent.append(self._leaving.read())
        self.flush()
