"""Metrics: what is made of scores, and of texts themselves."""
