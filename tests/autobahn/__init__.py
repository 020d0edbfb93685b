"""The Autobahn test suite against the server's own handshake and WebSocket transport."""
