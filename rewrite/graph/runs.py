"""Runs of whole models: on inputs of their own, without gradients, and what fails is told.

A model may write into what it is given (an in-place activation in front, its own preprocessing).
So it always gets copies: each op of the model reads as much again, a copy is never what costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ...grammar.diagnostics import Diagnostic, Label, LissomError
from .source_lines import is_model_file, place
from .values import rebuild

T = TypeVar("T")


class RunFailed(LissomError):
    """`model` cannot be run on what it was given, which `what` names."""

    def __init__(self, model: nn.Module, what: str, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)
        self.model, self.what = model, what

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process is told: the model stays here."""
        return LissomError, tuple(self.diagnostics)

    @property
    def reason(self) -> str:
        """In one line: what torch said, and where in the model."""
        found = self.diagnostics[0]
        places = [label.where for label in found.labels if label.where]
        said = [note.partition(": ")[2] or note for note in found.notes[:1]]
        return " ".join([*said, *(f"({at})" for at in places[:1])])


def run_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    what: str = "the example",
) -> Any:
    """What a model returns for copies of these inputs, which `what` names in messages.

    Raises RunFailed (V108) for whatever the model raises.
    """
    own_args, own_kwargs = own_inputs((args, dict(kwargs or {})))
    with torch.no_grad(), telling_failures(model, args, kwargs, what):
        # Not `model(...)`: a GraphModule's own call prints a traceback of its generated code.
        return nn.Module.__call__(model, *own_args, **own_kwargs)


def interpret(runner: fx.Interpreter, args: tuple[Any, ...], what: str = "the example") -> Any:
    """What an interpreter of a graph returns for copies of these inputs. Raises RunFailed."""
    runner.extra_traceback = False
    model = runner.module
    assert isinstance(model, nn.Module)
    with torch.no_grad(), telling_failures(model, args, None, what):
        return runner.run(*own_inputs(args))


class Watcher(fx.Interpreter):
    """Runs a graph, remembers the node it is at, and tells `seen` what each node gives."""

    extra_traceback = False
    at: fx.Node | None = None

    def __init__(
        self, module: fx.GraphModule, seen: Callable[[fx.Node, Any], object] | None = None
    ) -> None:
        super().__init__(module)
        self.seen = seen

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        value = super().run_node(n)
        if self.seen is not None:
            self.seen(n, value)
        return value


def watched(
    module: fx.GraphModule, args: tuple[Any, ...], seen: Callable[[fx.Node, Any], object]
) -> Any:
    """What a graph returns for these very inputs; `seen` is told what each node gives."""
    with torch.no_grad():
        return Watcher(module, seen).run(*args)


class Recorder(fx.Interpreter):
    """Runs a graph up to the last of the wanted nodes, and keeps what they give."""

    def __init__(self, module: fx.GraphModule, wanted: Iterable[fx.Node]) -> None:
        super().__init__(module)
        self.traced, self.wanted = module.graph, frozenset(wanted)
        self.kept: dict[fx.Node, Any] = {}

    def run(self, *args: Any, **settings: Any) -> Any:
        args = self.traced.process_inputs(*args)
        settings["enable_io_processing"] = False  # the outputs may not be there
        return super().run(*args, **settings)

    def run_node(self, n: fx.Node) -> Any:
        if len(self.kept) == len(self.wanted):
            return None  # stopping by an exception makes torch import all of its compiler
        value = super().run_node(n)
        if n in self.wanted:
            self.keep(n, value)
        return value

    def keep(self, node: fx.Node, value: Any) -> None:
        self.kept[node] = value.clone() if isinstance(value, Tensor) else value


def record(
    module: fx.GraphModule, nodes: Sequence[fx.Node], args: tuple[Any, ...], what: str = "the data"
) -> dict[fx.Node, Any]:
    """What `nodes` hold when the graph runs on these inputs, as far as the last of them."""
    recorder = Recorder(module, nodes)
    interpret(recorder, args, what)
    return recorder.kept


@contextmanager
def on_copies(model: nn.Module) -> Iterator[None]:
    """While it lasts, whoever calls the model gives it copies: for code that is not ours."""
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: own_inputs((args, kwargs)), prepend=True, with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


# -- copies ----------------------------------------------------------------------------------------


def own_inputs(value: T) -> T:
    """The same structure with copies of its tensors; what is one tensor stays one."""
    known: dict[int, Tensor] = {}

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = copied(leaf)
        return known[id(leaf)]

    return rebuild(value, own)


def copied(tensor: Tensor) -> Tensor:
    """A copy in the same memory format, gaps included: whether `view` takes it depends on that."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return tensor.detach().clone()
    plain = tensor.detach()
    repeated = [a for a, stride in enumerate(plain.stride()) if stride == 0 and plain.shape[a] > 1]
    for axis in repeated:
        plain = plain.narrow(axis, 0, 1)
    copy = torch.empty_strided(plain.shape, plain.stride(), dtype=plain.dtype, device=plain.device)
    try:
        return copy.copy_(plain).expand(tensor.shape)
    except RuntimeError:  # windows that overlap cannot be written one by one
        return tensor.detach().clone()


# -- what fails ------------------------------------------------------------------------------------


@contextmanager
def telling_failures(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, what: str
) -> Iterator[None]:
    """Turns what the model raises into RunFailed, with the line of the model that raised it."""
    try:
        yield
    except (LissomError, MemoryError):
        raise
    except Exception as error:
        raise RunFailed(model, what, _failure(model, args, kwargs, what, error)) from error


def _failure(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    what: str,
    error: Exception,
) -> Diagnostic:
    node = _failing_node(model, args, kwargs)
    where = innermost(error) if node is None else _place_of(node)
    return Diagnostic(
        "V108",
        f"the model cannot be run on {what}",
        (Label(None, where=where),) if where else (),
        (f"{type(error).__name__}: {one_line(error)}",),
        ("give inputs and data that the model takes; `model(*inputs)` must run",),
    )


def _place_of(node: fx.Node) -> str:
    """The module path or name of a node, and its line in the model where that is known."""
    name = str(node.target) if node.op == "call_module" else node.name
    source = node.meta.get("source", "")
    return f"{name} ({source})" if source else name


def _failing_node(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> fx.Node | None:
    """The node of a graph that raises; None for what is no graph or does not raise again."""
    if not isinstance(model, fx.GraphModule) or kwargs:
        return None
    watch = Watcher(model)
    try:
        with torch.no_grad():
            watch.run(*own_inputs(args))
    except Exception:
        return watch.at
    return None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def innermost(error: BaseException) -> str:
    """`file.py:line` of the last frame of a traceback that is neither torch nor this package."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if is_model_file(trace.tb_frame.f_code.co_filename):
            found = place(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found
