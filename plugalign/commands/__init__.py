"""The commands of ``plugalign`` and what they print."""
