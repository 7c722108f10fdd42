"""The commands: what each takes, what it does, and how it tells of it."""
