"""Judges: what turns texts into scores, and whether it can be trusted."""
