"""Commands: parse, call the interface, print."""
