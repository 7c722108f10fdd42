"""Contract suites: pytest classes that run on any adapter. Import them from `trunkline.testing`."""
