"""The four capabilities: comprehension, diagnosis, rectification, and what they cost."""
