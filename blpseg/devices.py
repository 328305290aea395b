"""Find the torch device of a name."""

from __future__ import annotations

import torch

from blpseg.errors import UserError


def choose_device(device: str) -> torch.device:
    """Find the torch device of a name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        UserError: There is no such device.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"device: expected auto or a torch device of this machine, got {device!r} ({reason})"
        ) from error
