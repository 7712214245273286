# SPDX-License-Identifier: Apache-2.0
"""The one exception that the scripts turn into a line on stderr and exit code 2."""

from __future__ import annotations


class Q7Error(Exception):
    """Input that cannot be used: the message names the place, the value seen and what is allowed, in one line."""

    def __init__(self, message: str) -> None:
        # Names out of a damaged or hostile file reach the terminal here.
        super().__init__("".join(c if c.isprintable() else "?" for c in message))
