"""Who hears what, and when: synchronous, so that it can be reasoned about."""
