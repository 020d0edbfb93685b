"""A client of the server: it reconnects, and it proves its stream."""
