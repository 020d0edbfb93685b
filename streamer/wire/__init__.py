"""How messages become bytes for one receiver. No I/O."""
