"""Models of the language family."""
