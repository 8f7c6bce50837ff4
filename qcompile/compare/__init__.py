"""Judges an engine against the model it was made from."""
