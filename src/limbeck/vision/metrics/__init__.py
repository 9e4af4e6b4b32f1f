"""Metrics of classifiers beside those of every family."""
