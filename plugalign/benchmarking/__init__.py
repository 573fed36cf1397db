"""What each controller costs per token, beside plain ``generate``."""
