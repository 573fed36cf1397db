"""The algebra of controllers: sources, shifts, supports and gates, as data that adds up."""
