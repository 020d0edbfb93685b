"""Topics, clients and the flush that writes to them: synchronous, so each call is one step."""
