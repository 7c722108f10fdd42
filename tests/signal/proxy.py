"""A proxy between a store and its server, that can lose the answer to what was done."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

#: Connects to the server.
Connect = Callable[[], socket.socket]


class Proxy:
    """Forwards bytes, until one client has sent all of `lose_answer_after`, in that order.

    What comes back then is thrown away, and the connection is closed.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lose_answer_after: list[bytes] = []
        #: How many answers were lost.
        self.lost = 0

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._serve_one, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve_one(self, client: socket.socket) -> None:
        cut = threading.Event()
        with closing(client), closing(self._connect()) as server:
            back = threading.Thread(target=self._forward_back, args=(server, client, cut))
            back.start()
            wanted = iter(())
            sought = b""
            while data := _receive(client):
                if not sought:
                    wanted = iter(self.lose_answer_after)
                    sought = next(wanted, b"")
                while sought and sought in data:
                    sought = next(wanted, b"")
                    if not sought:
                        cut.set()
                server.sendall(data)
            _hang_up(server)
            back.join()

    def _forward_back(
        self, server: socket.socket, client: socket.socket, cut: threading.Event
    ) -> None:
        while data := _receive(server):
            if cut.is_set():
                self.lost += 1
                break
            client.sendall(data)
        _hang_up(client)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster


@contextmanager
def run_proxy(connect: Connect) -> Iterator[Proxy]:
    proxy = Proxy(connect)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
