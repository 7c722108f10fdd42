"""trunkline in the bot frameworks: one module each, behind an extra of the same name."""
