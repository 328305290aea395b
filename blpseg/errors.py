"""The error for what the user can mend."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """Something in the user's hands is wrong: a file, a folder, an option.

    The message says what was expected and what came. The command line prints it without a
    traceback and exits with 2.
    """


def raise_problems(where: str, problems: Sequence[str], shown: int = 5) -> None:
    """Raise one `UserError` for all problems found, or return where there are none.

    Args:
        where: What was checked, e.g. the folder's path.
        problems: One line each, naming the file.
        shown: How many problems the message spells out; the rest is counted.

    Raises:
        UserError: If there is a problem.
    """
    if not problems:
        return
    lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {where}:"]
    lines += [f"  {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    raise UserError("\n".join(lines))
