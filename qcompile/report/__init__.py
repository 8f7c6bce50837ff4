"""Shows what happened: terminal and JSON."""
