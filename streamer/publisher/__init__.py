"""For producers: publish with a position, once and in order."""
