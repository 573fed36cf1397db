"""Comparing methods on the same prompts: judges, metrics and paired statistics."""
