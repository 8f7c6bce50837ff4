"""Decides, for one target, what becomes which type, and why."""
