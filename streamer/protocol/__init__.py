"""What is said on the wire: topics, messages, frames, errors. No I/O, no trio, no sockets."""
