"""Connections of clients: listeners, handshake, WebSocket, sessions, requests and limits."""
