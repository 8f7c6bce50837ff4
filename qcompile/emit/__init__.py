"""Writes engines."""
