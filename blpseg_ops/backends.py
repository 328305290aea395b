"""Which implementations each op has on each device, and how ``backend=`` chooses among them.

Every op has ``"reference"``, on every device: plain PyTorch, differentiated by torch's autograd. A
compiled kernel is registered with torch's dispatcher for a device and named here. ``"auto"`` calls
``torch.ops.blpseg.<op>``, where the dispatcher takes the device's kernel, or the reference where it
has none.
"""

from __future__ import annotations

from blpseg_ops import _native

REFERENCE = "reference"
AUTO = "auto"
OPS = (
    "lam",
    "blp_loss",
    "annotation_loss",
    "pseudo_labels",
    "blp_objective",
    "upsample_argmax",
)

_kernels: dict[tuple[str, str], str] = {}  # (op, device type) -> name of its compiled kernel


def name_kernel(op: str, device_type: str, name: str) -> None:
    """Name the kernel that the dispatcher holds for an op on a device."""
    _kernels[op, device_type] = name


if _native.CPU_PROBLEM is None:
    for _op in OPS:
        name_kernel(_op, "cpu", "cpp")
if _native.CUDA_PROBLEM is None:
    for _op in OPS:
        if _op != "lam":
            name_kernel(_op, "cuda", "cuda")
if _native.TRITON_PROBLEM is None:
    name_kernel("lam", "cuda", "triton")


def available(op: str, device_type: str) -> tuple[str, ...]:
    """The backends of an op on a device, best first: what ``"auto"`` takes is ``[0]``.

    Examples:
        >>> blpseg_ops.backends.available("lam", "meta")
        ('reference',)
    """
    kernel = _kernels.get((op, device_type))
    return (REFERENCE,) if kernel is None else (kernel, REFERENCE)


def use_reference(op: str, device_type: str, backend: str) -> bool:
    """Whether a call asks for the reference by name, rather than for the dispatcher's kernel.

    Raises:
        ValueError: ``backend`` is not "auto" and the op has no such backend on this device.
    """
    if backend == AUTO:
        _native.notice_missing(device_type)
        return False
    choices = available(op, device_type)
    if backend not in choices:
        names = ", ".join(repr(name) for name in (AUTO, *choices))
        raise ValueError(f"{op}: backend must be one of {names} on {device_type}, got {backend!r}")
    return backend == REFERENCE
