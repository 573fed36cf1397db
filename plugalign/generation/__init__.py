"""One call: `generate`, `log_probs` and revision of a wrapped model; see CONTRIBUTING.md."""
