"""The commands: their arguments, what they do, and how they report it."""
