"""Workers and their parent, as real processes."""
