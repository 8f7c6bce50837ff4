"""Reads samples and collects statistics with bounded memory."""
