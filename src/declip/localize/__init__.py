"""Localization: photos → scores, masks and verdicts, one or a folder full."""
