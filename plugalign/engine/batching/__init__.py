"""Batching: the base in other contexts, and experts, as extra rows of one forward."""
