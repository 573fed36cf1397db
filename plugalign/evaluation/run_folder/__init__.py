"""A run's folder: its manifest, journals and records."""
