"""Runs that are harmed on purpose, and what they leave behind: nothing is ever lost."""
