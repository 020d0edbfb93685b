"""The protocol: topics, messages, publications, errors. No I/O, no trio, no sockets."""
