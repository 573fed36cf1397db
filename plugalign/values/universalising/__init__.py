"""The categorical-imperative test: what becomes of a maxim when everybody follows it?"""
