"""Values: measuring them, judging by them, and aligning to them."""
