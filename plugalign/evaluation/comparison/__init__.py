"""A comparison from prompts to summary."""
