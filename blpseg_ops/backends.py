"""The backends of each op on each device, and how ``backend=`` chooses one.

``"reference"`` is the op's definition in plain PyTorch, differentiated by autograd; every device
has it. A kernel is registered with torch's dispatcher for a device and named here. ``"auto"`` calls
``torch.ops.blpseg.<op>``: the dispatcher runs the kernel of the device or, without one, the
fallback (``blpseg_ops/fallback``).
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

_kernels: dict[tuple[str, str], str] = {}  # (op, device type) -> name of its kernel


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
    """Return the backends of an op on a device: its kernel, if it has one, and "reference".

    ``"auto"`` runs the kernel. Without one it runs the fallback, which computes the reference in
    blocks and needs less memory.

    Examples:
        >>> blpseg_ops.backends.available("lam", "meta")
        ('reference',)
    """
    kernel = _kernels.get((op, device_type))
    return (REFERENCE,) if kernel is None else (kernel, REFERENCE)


def use_reference(op: str, device_type: str, backend: str) -> bool:
    """Return True if ``backend`` names the reference; False if the dispatcher is to choose.

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
