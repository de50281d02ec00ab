"""Rules over the resolution: smaller images inside, the same callers outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.jobs import testing
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.explain.funnel import Funnel, funnel
from lissom.rewrite.journal import Applied, Note, Refused
from lissom.rewrite.store.folder import load
from lissom.rewrite.targets import resize
from lissom.rewrite.targets.images import EXACT_RESIZE

from .support import LIBRARY, library, state_of, the_rule

SLIM = library("slim")
RULE = SLIM[SLIM.index("approx rule resolution") :]
CLAIM = "macs(after) < macs(before)"


class Pooled(nn.Module):
    """Two convolutions, a norm, and the mean over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.back, self.head = nn.Conv2d(8, 6, 3, padding=1, stride=2), nn.Linear(6, 5)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.back(torch.relu(self.norm(self.stem(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Flat(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Written(Flat):
    """The same with the number written down."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).view(-1, 96))


class Table(Pooled):
    """A learned number for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(6, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.features(x) + self.table).mean((2, 3)))


class Map(Pooled):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x)
        return self.head(x.mean((2, 3))), x


class Sized(Pooled):
    """Sizes come from the image, and stay with it."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        y = self.features(x).view(n, 6, height * width // 4)
        return self.head(y.transpose(1, 2).sum(1) / (height * width // 4))


class Decides(Pooled):
    """Small images take another way."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * (2 if x.shape[-1] < 5 else 1)


class Vectorised(Pooled):
    """No trace can follow it; torch.export reads it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda one: Pooled.forward(self, one[None])[0])(x)


class Inside(Pooled):
    """It resizes its images itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(interpolate(x, size=(6, 6)))


class Writes(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0].mul_(0.5)
        return super().forward(x)


class Two(Pooled):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return super().forward(left) + self.head(self.features(right).mean((2, 3)))


class Added(Pooled):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return super().forward(left + right)


def net(kind: type[nn.Module] = Pooled) -> nn.Module:
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def image(height: int = 8, width: int = 8, count: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator)


def smaller(x: Tensor, *size: int) -> Tensor:
    return interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def compiled(
    model: nn.Module,
    step: str = "once resolution",
    inputs: tuple[Any, ...] | None = None,
    budget: str = "drift(outputs) <= 1000%",
    rule: str = RULE,
) -> Any:
    program = f"{rule} pipeline p {{ budget {budget}; stage s {{ {step} }} }}"
    return lissom.compile(model, program, inputs=inputs or (image(),))


def sizes(result: Any) -> dict[str, str]:
    return {event.site: event.bindings["R"] for event in result.journal.of(Applied)}


def refused(result: Any) -> tuple[str, str]:
    assert not result.applied
    (event,) = result.journal.of(Refused)
    return event.code, event.reason


# -- what comes out --------------------------------------------------------------------------------


def test_it_computes_on_the_resized_image() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = compiled(model)
    assert sizes(result) == {"x": "8x8 -> 6x6"}
    for x in (image(), image(count=5, seed=2), image(12, 10)):
        torch.testing.assert_close(result.model(x), model(smaller(x, 6, 6)))
    (event,) = result.journal.of(Applied)
    assert event.verdicts[0].claim == EXACT_RESIZE
    assert all(verdict.holds for verdict in event.verdicts)
    assert all(torch.equal(model.state_dict()[name], old) for name, old in before.items())


def test_multiplications_fall_with_the_positions() -> None:
    """The stem at 8x8 and 6x6, the strided layer at 4x4 and 3x3, for two images."""
    result = compiled(net())
    stem, back, head = 3 * 8 * 9, 8 * 6 * 9, 6 * 5
    assert result.before.macs == 2 * (64 * stem + 16 * back + head)
    assert result.after.macs == 2 * (36 * stem + 9 * back + head)
    assert result.after.params == result.before.params


def test_every_node_says_what_it_gives() -> None:
    result = compiled(net())
    for node in result.model.graph.nodes:
        assert node.op == "output" or "val" in node.meta
    (conv,) = [n for n in result.model.graph.nodes if n.target == "stem"]
    assert conv.meta["val"].shape == (2, 8, 6, 6)


@pytest.mark.parametrize(
    ("height", "width", "step", "size"),
    [
        (8, 12, "once resolution", "8x12 -> 6x9"),
        (8, 10, "once resolution", "8x10 -> 6x8"),  # 7.5
        (9, 5, "once resolution(rho = 50%)", "9x5 -> 5x3"),  # 2.8
        (8, 12, "once resolution(multiple = 4, rho = 40%)", "8x12 -> 4x6"),
        (8, 1, "once resolution(rho = 25%)", "8x1 -> 2x1"),
    ],
)
def test_the_width_goes_with_the_height(height: int, width: int, step: str, size: str) -> None:
    assert sizes(compiled(net(), step, (image(height, width),))) == {"x": size}


def test_sizes_that_come_from_the_image_follow() -> None:
    model = net(Sized)
    result = compiled(model)
    torch.testing.assert_close(result.model(image(count=3)), model(smaller(image(count=3), 6, 6)))


def test_an_exported_graph() -> None:
    """Its results were recorded with twice the batch; inside of `vmap` there is one image."""
    model = net(Vectorised)
    result = compiled(model)
    stem, back, head = 3 * 8 * 9, 8 * 6 * 9, 6 * 5
    assert result.before.macs == 64 * stem + 16 * back + head
    assert result.after.macs == 36 * stem + 9 * back + head
    (output,) = result.model.graph.output_node().all_input_nodes
    assert output.meta["val"].shape == (4, 5)
    torch.testing.assert_close(result.model(image()), model(smaller(image(), 6, 6)))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_precisions(kind: torch.dtype) -> None:
    """In half precision torch cannot antialias, and the resize does without."""
    model = net().to(kind)
    result = compiled(model, inputs=(image().to(kind),))
    assert sizes(result) == {"x": "8x8 -> 6x6"}
    assert result.model(image().to(kind)).dtype == kind
    (resize,) = [n for n in result.model.graph.nodes if n.target is interpolate]
    assert resize.kwargs.get("antialias", False) == (kind == torch.float64)


def test_a_smaller_model_is_saved_and_loaded(tmp_path: Path) -> None:
    result = compiled(net())
    result.save(tmp_path / "small")
    again = load(tmp_path / "small").module
    assert torch.equal(again(image(count=3)), result.model(image(count=3)))


def test_folds_and_cuts_before_and_behind() -> None:
    text = RULE + library("fold", "prune")
    stages = (
        "stage a { fixpoint { fold_bn } } stage b { once resolution }"
        " stage c { once prune_l1(ratio = 50%) }"
    )
    program = f"{text} pipeline p {{ budget drift(outputs) <= 1000%; {stages} }}"
    model = net()
    result = lissom.compile(model, program, inputs=(image(),))
    rules = [event.rule.partition("(")[0] for event in result.applied]
    assert rules == ["fold_bn", "resolution", "prune_l1", "prune_l1"]
    assert result.after.macs < 0.4 * result.before.macs


# -- inputs ----------------------------------------------------------------------------------------


def test_each_image_is_a_site() -> None:
    given = (image(), image(seed=2))
    model = net(Two)
    assert sizes(compiled(model, inputs=given)) == {"left": "8x8 -> 6x6", "right": "8x8 -> 6x6"}
    result = compiled(model, 'once resolution(rho = 50%) at "right"', given)
    assert sizes(result) == {"right": "8x8 -> 4x4"}
    expected = model(given[0], smaller(given[1], 4, 4))
    torch.testing.assert_close(result.model(*given), expected)


def test_images_that_meet_must_fit() -> None:
    result = compiled(net(Added), inputs=(image(), image(seed=2)))
    reasons = [event.reason for event in result.journal.of(Refused)]
    assert [reason[:26] for reason in reasons] == ["at 6x6 `add` cannot take i"] * 2
    assert not result.applied


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(8, 4), torch.randn(2, 3, 8)),
        (nn.Embedding(9, 4), torch.zeros(2, 1, 8, 8, dtype=torch.long)),
        (nn.Conv3d(2, 2, 1), torch.randn(1, 2, 4, 8, 8)),
    ],
)
def test_what_is_no_image(layer: nn.Module, x: Tensor) -> None:
    result = compiled(nn.Sequential(layer).eval(), inputs=(x,))
    assert not result.applied
    assert not result.journal.of(Refused)
    (note,) = result.journal.of(Note)
    assert note.code == "W702"
    assert "changed none of 0 candidates" in note.text


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [
        (Flat, "R013", "at 6x6 `head` cannot take it: "),
        (Written, "R013", "at 6x6 `reshape` cannot take it: "),
        (Table, "R013", "at 6x6 `add` cannot take it: "),
        (Map, "R013", "at 6x6 `relu_1` would give float32[2, 6, 3, 3], not float32[2, 6, 4, 4]"),
        (Inside, "R012", "it is resized to 6x6 already"),
        (Writes, "R012", "the model writes into it"),
    ],
)
def test_what_cannot_follow_says_where(kind: type[nn.Module], code: str, reason: str) -> None:
    found = refused(compiled(net(kind)))
    assert found[0] == code
    assert found[1].startswith(reason)
    assert not found[1].endswith(": ")  # what torch says, in its own words, follows


def test_a_written_size_that_happens_to_fit() -> None:
    """16 pixels of 4 images are 64 of one: it runs, and the model would return one row."""
    found = refused(compiled(net(Written), "once resolution(rho = 50%)", (image(count=4),)))
    assert found == (
        "R013",
        "at 4x4 `head` would give float32[1, 5], not float32[4, 5], and the model returns it",
    )


def test_what_python_decided_on_the_example() -> None:
    model = net(Decides)
    result = compiled(model)
    torch.testing.assert_close(result.model(image()), model(smaller(image(), 6, 6)))
    code, reason = refused(compiled(model, "once resolution(rho = 50%)"))
    assert code == "R013"
    wanted = "at 4x4 the model would be another graph: branch: lt(size(input, 3), 5) is False"
    assert reason.startswith(wanted.replace("input", "x"))
    assert "test_resolution.py:" in reason


def test_a_decision_about_a_second_image() -> None:
    """What was resized before counts as it is now."""

    class Larger(Two):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            found = super().forward(left, right)
            return found if left.shape[2] <= right.shape[2] else -found

    given = (image(), image(seed=2))
    result = compiled(net(Larger), "once resolution", given)
    assert sizes(result) == {"left": "8x8 -> 6x6", "right": "8x8 -> 6x6"}
    last = compiled(net(Larger), 'once resolution at "right"', given)
    assert refused(last)[1].startswith("at 6x6 the model would be another graph: branch: le(")


def test_the_image_itself_is_returned() -> None:
    class Both(Pooled):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    code, reason = refused(compiled(net(Both)))
    assert code == "R013"
    assert "float32[2, 3, 6, 6], not float32[2, 3, 8, 8]" in reason


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("once resolution(rho = 100%)", "rounding up to a multiple of 1 keeps all 8 rows"),
        ("once resolution(multiple = 8)", "rounding up to a multiple of 8 keeps all 8 rows"),
        ("once resolution(rho = 0%)", "the rule keeps nothing"),
    ],
)
def test_all_or_nothing(step: str, reason: str) -> None:
    assert refused(compiled(net(), step))[1] == reason


def test_a_second_time() -> None:
    """A fixpoint ends: what was resized is not resized again."""
    result = compiled(net(), "fixpoint { resolution }")
    assert sizes(result) == {"x": "8x8 -> 6x6"}
    reasons = {event.reason for event in result.journal.of(Refused)}
    assert reasons == {"it is resized to 6x6 already"}


# -- budgets ---------------------------------------------------------------------------------------


def test_a_budget_of_the_pipeline() -> None:
    model = net()
    result = compiled(model, budget="drift(outputs) <= 0.001%")
    assert not result.applied
    assert torch.equal(result.model(image()), model(image()))


def test_a_budget_of_the_rule() -> None:
    text = RULE.replace(CLAIM, f"{CLAIM}; error(outputs) <= 0.001%")
    code, reason = refused(compiled(net(), rule=text))
    assert code == "B001"
    assert "error(outputs) <= 0.001%" in reason


def test_each_stops_at_its_target() -> None:
    given = (image(), image(16, 16, seed=2))
    step = "each resolution(rho = 50%) order by macs until macs(model) <= 60%"
    assert sizes(compiled(net(Two), step, given)) == {"right": "16x16 -> 8x8"}


def test_each_takes_back_what_breaks_a_budget() -> None:
    result = compiled(net(), "each resolution order by macs", budget="drift(outputs) <= 0.001%")
    assert [event.code for event in result.journal.of(Refused)] == ["B002"]
    assert result.after == result.before


# -- rules that are wrong --------------------------------------------------------------------------


def test_a_reader_that_keeps_the_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planned model is compared: with a reader forgotten it is another one."""
    insert = resize._insert

    def forgetful(state: Any, site: Any, module: fx.GraphModule) -> fx.Node:
        made = insert(state, site, module)
        next(iter(made.users)).replace_input_with(made, made.args[0])
        return made

    class Twice(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x * 2)

    monkeypatch.setattr(resize, "_insert", forgetful)
    with pytest.raises(LissomError, match="V101"):
        compiled(net(Twice))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("approx", "exact", "X001.*changes the resolution"),
        ("R := N", "R := R + 1", "R001.*`9` is no smaller height"),
        ("R := N", "R := R / 2", "R001.*`4.0` is no smaller height"),
        ("rewrite {", "perturb { zero(readers(R), outside = N) }\n rewrite {", "R002"),
        ("N < R", "N < R and known(writers(R))", "R002.*is more than one cut"),
        ("in resolution", "in resolutions", "N001.*is no kind of dimension"),
    ],
)
def test_a_rule_that_means_something_else(old: str, new: str, message: str) -> None:
    with pytest.raises(LissomError, match=f"(?s){message}"):
        compiled(net(), rule=RULE.replace(old, new))


# -- why, and what is not tested -------------------------------------------------------------------


def asked(kind: type[nn.Module], at: str | None = None) -> Funnel:
    state = state_of(capture(net(kind), (image(),)).module, (image(),))
    return funnel(state, the_rule(RULE), at)


def test_why_it_applies() -> None:
    found = asked(Pooled)
    assert found.sites == ("x",)
    assert [(level.came, level.passed) for level in found.levels] == [(1, 1)] * 4


def test_why_it_does_not() -> None:
    found = asked(Flat)
    assert [level.passed for level in found.levels] == [1, 1, 0, 0]
    (near,) = found.nearest
    assert near.code == "R013"
    assert near.source.startswith("test_resolution.py:")
    assert "`head` cannot take it" in near.reason


def test_why_at_no_image() -> None:
    assert asked(Pooled, "x").sites == ("x",)
    with pytest.raises(LissomError, match=r"(?s)U008.*there are x"):
        asked(Pooled, "stem")


def test_it_is_said_that_no_models_are_drawn() -> None:
    (job,) = testing.jobs_of([LIBRARY / "slim.lissom"], ["resolution"], 10, 0, None)
    assert testing.prove_job(job) == (
        "no models with images of several sizes are drawn; nothing was shown or refuted"
    )
