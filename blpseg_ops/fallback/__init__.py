"""The operators in plain PyTorch, for devices without a native kernel.

Each file has the ``<op>_forward`` and ``<op>_backward`` of an op, with the arguments and results of
the operators in ``_schemas.py``. Gradients come from their formulas. The functions are built from
operators that torch.export and ONNX know, so :func:`blpseg_ops.decompositions` consists of them.
They are tested against :mod:`blpseg_ops.reference`. ``pseudo_labels`` and ``upsample_argmax`` have
no backward; their reference is the fallback.
"""
