"""Training: one step, one loop, one checkpoint format, for any model and method given as a Stage."""
