"""Checks a model against the rules of an engine's parser and builder, before either is there."""
