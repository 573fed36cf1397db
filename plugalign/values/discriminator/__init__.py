"""The value discriminator: whether a text conforms to a value statement."""
