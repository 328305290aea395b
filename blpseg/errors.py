"""Exceptions that the command line reports in one line, without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """A file, folder or option of the user is wrong.

    The message says what was expected, what came, and what to do. The command line exits with 2.
    """


class TrainingStopped(Exception):  # noqa: N818, it reports no error
    """A training run was asked to stop and has saved its state; the message says how to resume.

    The command line exits with 143.
    """


def raise_problems(where: str, problems: Sequence[str], shown: int = 5) -> None:
    """Raise one `UserError` for all problems; return if there are none.

    Args:
        where: What was checked, e.g. the folder's path.
        problems: One line each, which names the file.
        shown: Number of problems in the message; the others are counted.

    Raises:
        UserError: There is a problem.
    """
    if not problems:
        return
    lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {where}:"]
    lines += [f"  {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    raise UserError("\n".join(lines))
