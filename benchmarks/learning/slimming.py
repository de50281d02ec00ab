"""Network slimming (Liu et al. 2017, arXiv:1708.06519, table 3: 84.4 % fewer parameters, 1.43 %
error becomes 1.49 %): an MLP 784-500-300-10 with batch norms on MNIST. The scales of norms are
pushed towards 0 while it is trained, then the neurons that are scaled least are cut, then what is
left is trained. Beside it, the same without the push.
"""

from __future__ import annotations

from study import Row, compiled, measured, mlp, study

PROGRAM = """
  budget drop(accuracy) <= 1% on valid
  recover dense {
    epochs = 6
    loss = task() + PENALTY * norm_scales()
    keep = last
    optimizer = SGD(lr = 0.05, momentum = 0.9, weight_decay = 0.0001)
    schedule = cosine()
    seed = SEED
  }
  stage slim { once prune_scale(ratio = 80%) }
  recover tune {
    epochs = 10
    optimizer = SGD(lr = 0.05, momentum = 0.9, weight_decay = 0.0001)
    schedule = cosine()
    seed = SEED
  }
"""
DENSE = (
    PROGRAM.partition("stage slim")[0]
    .replace("epochs = 6", "epochs = 16")
    .replace("keep = last", "")
)


def run(penalty: str, body: str = PROGRAM) -> object:
    def one(seed: int) -> Row:
        text = body.replace("PENALTY", penalty).replace("SEED", str(seed))
        result = compiled(text, mlp(784, 500, 300, 10, seed=seed, norms=True))
        before, after = result.before.params, result.after.params
        return {**measured(result.model), "parameters": after, "fewer": 100 * (1 - after / before)}

    return one


ARMS = {"dense": run("0", DENSE), "slimming": run("0.002"), "without the push": run("0")}

if __name__ == "__main__":
    study("slimming", ARMS, __doc__)
