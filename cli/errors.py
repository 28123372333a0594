"""What ends a command with one line and exit code 1, beside the service's own errors.

CommandFailed    the command can't do what it was asked; the message says why, and the way out
└── PartFailed   a part of the service ended, or did not become ready
"""

from __future__ import annotations


class CommandFailed(Exception):
    """Base of the tree."""


class PartFailed(CommandFailed):
    """A part ended or did not become ready; the message holds the end of its log."""
