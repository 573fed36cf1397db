"""Less time around the forwards: traced, compiled and captured steps."""
