"""How one call is decoded: declarations in, tokens out; see the map in CONTRIBUTING.md."""
