"""Where clients arrive: listeners, handshake, sessions, limits, and the statistics page."""
