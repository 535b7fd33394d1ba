"""Tasks in the manner of RULER, and how answers are scored."""
