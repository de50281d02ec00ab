"""Dense - sparse - dense (Han et al. 2017, arXiv:1607.04381) on LeNet-300-100, MNIST: half of the
weights are cut, the rest is trained, then all are trained again. Beside it, as many epochs of dense
training, with the same learning rates; the paper has no such control.
"""

from __future__ import annotations

from study import Row, compiled, lenet_300_100, measured, study

TRAIN = "optimizer = SGD(lr = RATE, momentum = 0.9); schedule = cosine(); seed = SEED"
DENSE = f"recover dense {{ epochs = 6; {TRAIN.replace('RATE', '0.05')} }}"
SPARSE = f"recover sparse {{ epochs = 4; {TRAIN.replace('RATE', '0.02')} }}"
AGAIN = f"recover again {{ epochs = 4; {TRAIN.replace('RATE', '0.005')}; constraints = dropped }}"
PRUNE = "stage prune { once prune_weights(ratio = 50%, budget = 100%) }"
PROGRAM = f"{DENSE} control equal {{ {SPARSE} {AGAIN} }} {PRUNE} {SPARSE} {AGAIN}"


def run(seed: int) -> Row:
    result = compiled(PROGRAM.replace("SEED", str(seed)), lenet_300_100(seed))
    found, other = measured(result.model), measured(result.controls["equal"])
    equal = {f"equal epochs {split}": error for split, error in other.items()}
    return {**found, **equal, "apart": other["test"] - found["test"]}


if __name__ == "__main__":
    study("dense_sparse_dense", {"dense - sparse - dense": run}, __doc__)
