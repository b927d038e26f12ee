"""How fast the migration runner is, next to its peers."""
