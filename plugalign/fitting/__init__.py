"""Training of what controllers need: one `fit_*` function per method that learns."""
