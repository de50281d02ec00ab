"""Network slimming (Liu et al. 2017, arXiv:1708.06519, table 3: 84.4 % fewer parameters, 1.43 %
error becomes 1.49 %): an MLP 784-500-300-10 with batch norms on MNIST. The scales of norms are
pushed towards 0 while it is trained, then the neurons that are scaled least are cut, then what is
left is trained. Beside it, the same without the push.
"""

from __future__ import annotations

from study import Row, compiled, measured, mlp, study

SETTINGS = """
    batch = 32
    optimizer = SGD(lr = 0.02, momentum = 0.9, weight_decay = 0.0001)
    schedule = cosine()
    seed = SEED
"""
PROGRAM = f"""
  budget drop(accuracy) <= 1% on valid
  recover dense {{
    epochs = 10
    loss = task() + PENALTY * norm_scales()
    keep = last
    {SETTINGS}
  }}
  stage slim {{ once prune_scale(ratio = 80%) }}
  recover tune {{
    epochs = 20
    loss = cross_entropy(smoothing = 10%)
    {SETTINGS}
  }}
"""
DENSE = f"""
  recover dense {{
    epochs = 30
    loss = cross_entropy(smoothing = 10%)
    {SETTINGS}
  }}
"""


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
