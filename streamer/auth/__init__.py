"""Who a client is, and which topics it may have: tokens, keys, permissions."""
