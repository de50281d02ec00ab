"""What a pipeline asks of the whole model: budgets after each stage, and `verify` at the end."""

from __future__ import annotations

from dataclasses import dataclass

from ...grammar.tree import tree as t
from ..journal import Verdict, VerdictKind
from ..measure.compare import checked
from ..rules.state import State
from .budgets import Measures


@dataclass(frozen=True)
class Promises:
    """The budgets and checks of one pipeline; none of a program without one."""

    source: t.Pipeline | None
    state: State
    measures: Measures

    def broken(self) -> str | None:
        """The first budget that does not hold on the present graph, said in words."""
        if not self._budget_items():
            return None
        verdicts = checked(self.state.module, self.budgets)
        broken = next((v for v in verdicts if not v.holds), None)
        return None if broken is None else f"`{broken.claim}` would not hold: {broken.detail}"

    def _budget_items(self) -> tuple[t.Budget, ...]:
        return self.source.all(t.Budget) if self.source is not None else ()

    def budgets(self) -> tuple[Verdict, ...]:
        """One verdict for each `budget` of the pipeline, on the present graph."""
        return tuple(
            self.measures.judge(item.condition, item.data, item.span.text)
            for item in self._budget_items()
        )

    def final(self) -> tuple[Verdict, ...]:
        items = [
            i
            for v in (self.source.all(t.Verify) if self.source is not None else ())
            for i in v.items
        ]
        claims = [i for i in items if isinstance(i, t.Claim) and not _about_reload(i)]
        forbidden = [
            word for i in items if isinstance(i, t.Fact) and i.kind == "forbids" for word in i.names
        ]
        verdicts = [self.measures.judge(c.condition, c.data, c.span.text, c.within) for c in claims]
        return (*verdicts, *(self._forbidden(word) for word in forbidden))

    def _forbidden(self, word: t.Word) -> Verdict:
        count = len(self.state.view.calls_of(word.text))
        return Verdict(
            f"forbids {word}",
            "proved",
            count == 0,
            count,
            detail=f"{count} found" if count else "none left",
            kind=VerdictKind.BUDGET,
        )


def _about_reload(claim: t.Claim) -> bool:
    """`equal(reloaded)` is checked when the result is saved."""
    return any(
        isinstance(node, t.Name) and node.text == "reloaded" for node in t.walk(claim.condition)
    )
