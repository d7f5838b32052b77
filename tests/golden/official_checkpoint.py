"""Write a checkpoint in the official AdaFocus layout with deterministic weights.

Usage: python official_checkpoint.py layout_actnet128.json --seed 1 --out 128s3_checkpoint.pth.tar

The official training script stores, per checkpoint: `glancer`, `focuser`, `fc` (the recurrent classifier),
`policy`, the whole `model_state_dict`, and `epoch`, `acc`, `best_acc`, `scaler`, `optimizer`.
"""

import argparse
import json
from pathlib import Path

import torch
from weights import values

SECTIONS = {"glancer": "glancer.", "focuser": "focuser.", "fc": "classifier.", "policy": "focuser.policy.policy."}


def official_checkpoint(layout: dict, seed: int) -> dict:
    """Build the checkpoint dictionary for a {parameter name: shape} layout."""
    model = {}
    for name, shape in layout.items():
        source = name.replace(".policy_old.", ".policy.")  # after an update the two are equal
        model[name] = torch.from_numpy(values(source, tuple(shape), seed))
    checkpoint = {
        section: {name.removeprefix(prefix): w for name, w in model.items() if name.startswith(prefix)}
        for section, prefix in SECTIONS.items()
    }
    return checkpoint | {
        "model_state_dict": model,
        "epoch": 51,
        "acc": 71.0,
        "best_acc": 71.0,
        "scaler": None,
        "optimizer": None,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("layout")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    torch.save(official_checkpoint(json.loads(Path(options.layout).read_text()), options.seed), options.out)
