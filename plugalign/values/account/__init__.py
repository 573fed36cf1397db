"""Trace and accountability: what was changed, for whom, by what, under which version."""
