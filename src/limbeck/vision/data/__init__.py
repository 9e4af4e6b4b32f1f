"""Data that the recipes for classifiers use beside those of every family."""
