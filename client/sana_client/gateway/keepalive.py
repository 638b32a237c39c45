"""WebSockets that notice within two seconds that nobody is at the other end, and let slow ones be slow."""

import fcntl
import socket
import struct
import termios
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sana_client.gateway.alive import SILENT, LifeSigns

BACKLOG_BYTES = 16384
"""With more than this on its way, a ping may be stuck behind it."""

ABNORMAL = 1006
HOLDS_SLOT = "sana.holds_slot"
"""The extension of a connection's scope that tells whether it holds or waits for a slot; nobody does who sets none."""

RETRIES = slice(2, 4)
"""Where the kernel's account of a connection has its timeouts in a row, and its probes without an answer."""


class LivelySocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with every received byte as a sign of life instead of the answer to one ping.

    A peer that has much to receive still lives while its network stack answers ours: how long it may then take
    nothing is for the sender of the frames to decide.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._signs = LifeSigns(self.loop.time)
        self._received = self._looks = 0

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def send_keepalive_ping(self) -> None:
        """Called every `ws_ping_interval`."""
        self.ping_timer = None
        if self.close_sent or self.transport.is_closing():
            return
        self._looks += self.read_paused or self._takes_backlog()
        self._signs.seen((self._received, self._looks))
        extensions: dict[str, Any] = self.scope["extensions"]
        if self._signs.dead(extensions.get(HOLDS_SLOT, bool)()):
            self.queue.put_nowait({"type": "websocket.disconnect", "code": ABNORMAL, "reason": SILENT})
            # There is nobody to shake hands with, and what is buffered would delay the end.
            self.transport.abort()
            return
        self.conn.send_ping(b"")
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.schedule_ping()

    def _takes_backlog(self) -> bool:
        connection = self.transport.get_extra_info("socket")
        (waiting,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
        if waiting + self.transport.get_write_buffer_size() < BACKLOG_BYTES:
            return False
        return not any(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RETRIES.stop)[RETRIES])
