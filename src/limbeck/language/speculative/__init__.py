"""Speculative decoding: drafts propose several tokens, one forward of the target verifies them, nothing is lost."""
