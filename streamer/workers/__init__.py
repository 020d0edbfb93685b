"""Several servers on one port, each in a process with its own event loop and Redis reader."""
