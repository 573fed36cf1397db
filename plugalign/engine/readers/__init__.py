"""Readers: how the models that a step needs read a growing text, each with its cache."""
