"""Condensed graphs: a few nodes or a few trees in place of many."""
