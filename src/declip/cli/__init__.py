"""The command `declip`."""
