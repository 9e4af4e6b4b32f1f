"""Stages of runs with models of text."""
