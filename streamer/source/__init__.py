"""The source of publications: from the bus, in order and validated, into the hub."""
