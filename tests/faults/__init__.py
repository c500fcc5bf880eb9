"""Harm runs on purpose and judge what they leave behind: nothing is ever lost."""
