"""Random faults of everything around a server, and clients whose accounts must add up."""
