"""The lottery ticket: LeNet-300-100 on MNIST at 21 % of its weights (Frankle and Carbin 2019,
arXiv:1803.03635). Three rounds of training, cutting and going back to the first weights; then the
same mask is trained from the first weights, and beside that, in the same program, from new ones.
"""

from __future__ import annotations

from study import Row, compiled, lenet_300_100, measured, nonzero, study

TRAIN = "epochs = 4; optimizer = Adam(lr = 0.0012); batch = 60; seed = SEED"
PROGRAM = """
  checkpoint start
  repeat share in [41%, 65%, 79%] {
    recover dense { TRAIN }
    stage prune { once prune_weights(ratio = share, budget = 100%) }
    rewind start
  }
  control redrawn {
    rewind drawn(seed = 100)
    recover tune { TRAIN }
  }
  recover ticket { TRAIN }
"""


def run(seed: int) -> Row:
    text = PROGRAM.replace("TRAIN", TRAIN).replace("SEED", str(seed))
    result = compiled(text, lenet_300_100(seed))
    other = measured(result.controls["redrawn"])
    found = {**measured(result.model), "weights": nonzero(result.model)}
    apart = other["test"] - found["test"]
    return {**found, "redrawn valid": other["valid"], "redrawn test": other["test"], "apart": apart}


def dense(seed: int) -> Row:
    text = f"recover dense {{ {TRAIN.replace('SEED', str(seed))} }}"
    result = compiled(text, lenet_300_100(seed))
    return {**measured(result.model), "weights": nonzero(result.model)}


if __name__ == "__main__":
    study("lottery", {"dense": dense, "ticket": run}, __doc__)
