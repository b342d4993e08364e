"""Ops as `torch.ops.seesaw.<op>`: known to torch.compile, FakeTensor and opcheck.

Each op says what it looks like there (`Op.door`); this file registers it. seesaw itself calls the
plain functions, which are about 5 us a call nearer.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from seesaw.ops.registry import Op

NAMESPACE = "seesaw"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def register(ops: Iterable[Op]) -> None:
    """Define `torch.ops.seesaw.<op>` for each op that has a door."""
    for op in ops:
        if op.door is None:
            continue
        function = op.door.function
        prototype = _plain(function)
        taken = inspect.signature(prototype).parameters
        changed = [name for name in op.mutates if name in taken]
        schema = torch.library.infer_schema(prototype, mutates_args=changed)
        _LIBRARY.define(op.name + schema)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(  # type: ignore[no-untyped-call]
            op.name, function, "CompositeExplicitAutograd"
        )
        torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.door.fake, lib=_LIBRARY)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A prototype of `function` for the schema, which knows no choices of strings."""
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_widened(hints[name]))
        for name, parameter in signature.parameters.items()
    ]

    def prototype() -> None: ...

    prototype.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=_widened(hints["return"])
    )
    return prototype


def _widened(hint: Any) -> Any:
    if hint is type(None):
        return None
    return str if typing.get_origin(hint) is Literal else hint
