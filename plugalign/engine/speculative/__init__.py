"""Speculative decoding: drafts, and their verification under the controllers."""
