"""Paired statistics over prompts: intervals, tests, false-discovery control."""
