"""Topics, clients and the flush that serves them: synchronous, so that it can be reasoned about."""
