"""Commands that need no flow."""
