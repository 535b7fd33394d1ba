"""What was measured, for people: a page, a Markdown document."""
