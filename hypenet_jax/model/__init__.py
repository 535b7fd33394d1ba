"""The decoder of teacher and student: layers, mixers, HyPE positions, presets."""
