"""BinaryConnect (Courbariaux, Bengio and David 2015, arXiv:1511.00363) on MNIST: an MLP of three
hidden layers with batch norms, all weights a sign and one scale for each layer, signs that follow
the numbers behind them or are drawn. Beside it, the same network in float with as many epochs, and
that one rounded to signs afterwards. The hidden layers have 256 neurons, not 1,024: a seed takes
minutes on one thread.
"""

from __future__ import annotations

from study import Row, compiled, measured, mlp, study

TRAIN = "optimizer = Adam(lr = 0.003); schedule = cosine(); seed = SEED; batch = 200"
FLOAT = f"recover all {{ epochs = 20; {TRAIN} }}"
SIGNS = "stage signs { once binary_weights(stochastic = DRAWN) }"


def run(body: str, drawn: str = "false") -> object:
    def one(seed: int) -> Row:
        text = body.replace("SEED", str(seed)).replace("DRAWN", drawn)
        model = compiled(text, mlp(784, 256, 256, 256, 10, seed=seed, norms=True)).model
        values = [len(w.detach().unique()) for w in model.parameters() if w.dim() > 1]
        return {**measured(model), "values": max(values)}

    return one


LATER = f"{SIGNS} recover last {{ epochs = 0; {TRAIN} }}"
ARMS = {
    "float": run(FLOAT),
    "signs": run(f"{SIGNS} {FLOAT}"),
    "drawn signs": run(f"{SIGNS} {FLOAT}", "true"),
    "rounded afterwards": run(f"{FLOAT}\n{LATER}"),
}

if __name__ == "__main__":
    study("binary", ARMS, __doc__)
