"""Every fault survived or announced: real processes, real sockets, and an account that adds up."""
