"""Several servers on one port, each a process with a loop and a Redis reader of its own."""
