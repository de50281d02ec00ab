"""accelerate, for one training: what the host program set up for itself stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ...grammar.diagnostics import fail

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def own_accelerator() -> Iterator[Accelerator]:
    """One process on the CPU, unless the program was started by a launcher. Raises U010.

    All instances share one state, and a new one writes its settings there: the host's own would no
    longer accumulate gradients, or could not ask for another precision. Neither they nor variables
    of a launcher say how a model is trained here.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
    except ImportError:
        hint = "pip install 'lissom[train]'"
        raise fail("U010", "training needs the package accelerate", help=hint) from None
    shared: list[dict[str, Any]] = [
        kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)
    ]
    kept, threads = [dict(state) for state in shared], torch.get_num_threads()
    for state in shared[:2]:  # the third says which process this is
        state.clear()
    try:
        yield Accelerator(
            mixed_precision="no",
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    finally:
        for state, before in zip(shared, kept, strict=True):
            state.clear()
            state.update(before)
        torch.set_num_threads(threads)
