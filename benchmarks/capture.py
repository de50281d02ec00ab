"""How many public models are captured, proven bit for bit, with every executed convolution and
linear layer visible.

    python benchmarks/capture.py [timm] [torchvision] [transformers] [detection]
        [--only WORD] [--skip WORD] [--seconds 300] [--no-plain-fx]
        [--out results.jsonl] [--table results.jsonl]

Every model is built with random weights in a forked process of its own, with a time limit. The
table is printed as Markdown. "visible" counts modules of type Conv* or Linear that run in the eager
model: as a `call_module` node, or as a convolution or linear function whose weight is a `get_attr`
node. "plain fx" is `torch.fx.symbolic_trace`, counted as captured if it equals the eager model bit
for bit at the example and at twice the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import fx, nn

sys.path.insert(0, str(Path(__file__).parent))

import capture_models
import capture_transformers
import torchvision_cpu

from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.capture.equality import first_difference
from lissom.rewrite.capture.inputs import as_case, doubled
from lissom.rewrite.graph.values import tensors

_SETS = {
    "torchvision": capture_models.torchvision_entries,
    "timm": capture_models.timm_entries,
    "transformers": capture_transformers.transformers_entries,
    "detection": capture_models.detection_entries,
}
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "linear", "conv_transpose1d", "conv_transpose2d")
_FUNCTIONS += ("conv_transpose3d",)


class TimeLimit(BaseException):
    """A model took too long; no `except Exception` on the way may take it for its own."""


def main() -> None:
    options = _options()
    if options.table:
        rows = [json.loads(line) for line in Path(options.table).read_text().splitlines()]
        print(markdown(rows))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torchvision_cpu.prepare()
    rows = []
    for name in options.sets or _SETS:
        for row in _measure_all(name, options):
            rows.append(row)
            _report(row, options.out)
    print(markdown(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", type=_known_set, help=", ".join(_SETS))
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--skip", default=" ", help="no models whose name contains this")
    parser.add_argument("--plain-fx", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seconds", type=int, default=300, help="time limit for a model")
    parser.add_argument("--out", help="append results to this file, and skip what it holds")
    parser.add_argument("--table", help="print the table of an earlier run")
    return parser.parse_args()


def _known_set(name: str) -> str:
    if name not in _SETS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(_SETS)}")
    return name


def _measure_all(name: str, options: argparse.Namespace) -> Iterable[dict[str, Any]]:
    known = {}
    if options.out and Path(options.out).exists():
        lines = Path(options.out).read_text().splitlines()
        known = {(row["set"], row["name"]): row for row in map(json.loads, lines)}
    # In an order that has nothing to do with the names, so that a run cut short is a fair sample.
    for model, kind, build in sorted(_SETS[name](), key=lambda entry: crc32(entry[0].encode())):
        chosen = options.only in model and options.skip not in model
        if not chosen or (name, model) in known:
            continue
        row = _in_own_process(build, options)
        yield {"set": name, "name": model, "kind": kind, **row}


def _report(row: dict[str, Any], out: str | None) -> None:
    print(row["name"], row.get("how", "FAILED"), row.get("error", ""), file=sys.stderr, flush=True)
    if out:
        with Path(out).open("a") as file:
            file.write(json.dumps(row) + "\n")


# -- one model -----------------------------------------------------------------------------------


def _in_own_process(build: capture_models.Build, options: argparse.Namespace) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(_guarded(build, options)))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"error": f"the process died with status {status}"}


def _guarded(build: capture_models.Build, options: argparse.Namespace) -> dict[str, Any]:
    signal.signal(signal.SIGALRM, _expired)
    signal.alarm(options.seconds)
    row: dict[str, Any] = {}
    try:
        _measure(build, row, options.plain_fx)
    except (Exception, TimeLimit) as error:
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
    return row


def _expired(*_: Any) -> None:
    raise TimeLimit


def _measure(build: capture_models.Build, row: dict[str, Any], plain_fx: bool) -> None:
    torch.manual_seed(0)
    model, inputs = build()
    executed = _executed(model, inputs)
    row["weighted"] = len(executed)
    if plain_fx:
        row["plain_fx"] = _plain_fx(model, inputs)
    start = time.perf_counter()
    captured = capture(model, inputs)
    row["seconds"] = round(time.perf_counter() - start, 2)
    row["visible"] = len(executed & _visible(captured.module))
    row["hidden"] = sorted(executed - _visible(captured.module))[:3]
    row |= _summary(captured)


def _summary(captured: Captured) -> dict[str, Any]:
    return {
        "how": captured.how,
        "nodes": len(captured.module.graph.nodes),
        "specialised": len(captured.specialised),
        "opaque": list(captured.opaque),
        "proved": list(captured.proved),
        "notes": [f"{note.code} {note.message}" for note in captured.notes],
    }


def _executed(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    seen: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, __, path=path: seen.add(path))
        for path, module in model.named_modules()
        if isinstance(module, _WEIGHTED)
    ]
    as_case(inputs).run(model)
    for hook in hooks:
        hook.remove()
    return seen


def _visible(module: fx.GraphModule) -> set[str]:
    found = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", "")
        weighted = node.op == "call_function" and name.split(".")[0] in _FUNCTIONS
        weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
        if weighted and weight.op == "get_attr":
            found.add(node.meta["site"])
    return found


def _plain_fx(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    case = as_case(inputs)
    try:
        module = fx.symbolic_trace(model)
        pairs = [(c.run(model), c.run(module)) for c in (case, doubled(case))]
        # Only tensors count here: plain fx turns an OrderedDict into a dict.
        return not any(first_difference(tensors(a), tensors(b)) for a, b in pairs)
    except Exception as error:
        print(f"  plain fx: {type(error).__name__}", file=sys.stderr)
        return False


# -- the table -----------------------------------------------------------------------------------


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, one line per set and kind, and one line for every model that is not captured
    whole.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        label = (
            row["set"] if row["set"] in ("timm", "transformers") else f"{row['set']}, {row['kind']}"
        )
        groups.setdefault(label, []).append(row)
    head = (
        "| set | models | proven | all layers visible | by trace / export / opaque | plain fx "
        "| median s |\n|---|---|---|---|---|---|---|"
    )
    lines = [head, *(_line(label, group) for label, group in groups.items())]
    return "\n".join([*lines, "", *_exceptions(rows)])


def _line(label: str, group: list[dict[str, Any]]) -> str:
    done = [row for row in group if "how" in row]
    whole = [row for row in done if row["visible"] == row["weighted"]]
    ways = [sum(row["how"] == way for row in done) for way in _WAYS]
    tried = [row["plain_fx"] for row in group if "plain_fx" in row]
    fx_done = f"{sum(tried)} of {len(tried)}" if tried else "-"
    times = sorted(row["seconds"] for row in done)
    median = times[len(times) // 2] if times else 0
    total = len(group)
    return (
        f"| {label} | {total} | {_share(len(done), total)} | {_share(len(whole), total)} "
        f"| {' / '.join(map(str, ways))} | {fx_done} | {median} |"
    )


_WAYS = ("trace", "export", "trace with opaque leaves")


def _share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.1f} %)"


def _exceptions(rows: list[dict[str, Any]]) -> Iterable[str]:
    for row in rows:
        if "error" in row:
            yield f"- {row['name']}: {' '.join(row['error'].split())[:300]}"
        elif row["visible"] < row["weighted"]:
            missing = ", ".join(row["hidden"])
            yield f"- {row['name']}: {row['visible']} of {row['weighted']} visible, not {missing}"


if __name__ == "__main__":
    main()
