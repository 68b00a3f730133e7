"""The command line's own parts: what its commands share, and those on trials that are over."""
