"""What docs/security.md promises, tried on real processes."""
