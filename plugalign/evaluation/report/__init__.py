"""The report of a comparison: HTML, charts, and tables for a terminal."""
