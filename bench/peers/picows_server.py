# mypy: ignore-errors
"""picows (Cython) on uvloop: one send for each message and client."""

import sys

import picows
import uvloop
from redis_messages import Book, messages

book: Book[picows.WSTransport] = Book()


class Client(picows.WSListener):
    """One connection."""

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """Take a subscription."""
        if frame.msg_type == picows.WSMsgType.TEXT:
            answer = book.subscribe(transport, frame.get_payload_as_bytes())
            transport.send(picows.WSMsgType.TEXT, answer.encode())
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        """Forget the client."""
        book.forget(transport)


async def main(redis_port: int, port: int) -> None:
    """Serve until stopped."""
    await picows.ws_create_server(lambda _request: Client(), "127.0.0.1", port, backlog=4096)
    async for channel, payload in messages(redis_port):
        for transport in book.clients[channel]:
            transport.send(picows.WSMsgType.TEXT, payload)


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
