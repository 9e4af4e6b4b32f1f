"""Stages of language models."""
