"""The user's own exception out of an error of the engine, for tools whose users never heard of the engine's errors."""

from __future__ import annotations

from typing import cast

from shoal import exceptions


class RemoteTraceback(Exception):
    """Stands as the cause of an exception that was raised in another process: its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text


def original(error: BaseException) -> BaseException:
    """What the user's code raised, with the remote traceback as its cause; other errors as they are."""
    if not isinstance(error, exceptions.TaskError):
        return error
    cause = cast("BaseException | None", getattr(error, "cause", None))
    if not isinstance(cause, BaseException):
        return error
    if cause.__cause__ is None:
        cause.__cause__ = RemoteTraceback(str(error))
    return cause
