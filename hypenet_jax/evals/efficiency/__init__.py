"""Time, memory, and the least that a chip needs."""
