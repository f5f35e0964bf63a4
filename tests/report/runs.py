"""Run folders with the tables that a real run writes."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd

from fedsim.fairness import fairness_block, improved_share


def make_run(
    folder,
    *,
    num_clients=12,
    num_classes=10,
    rounds=6,
    every=2,
    sampled=0.5,
    status="finished",
    names=None,
    untested=(),
    central=True,
    certificate=False,
    hard_classes=(8, 9),
    seed=0,
):
    """A run folder with the tables a real run writes; clients rich in the hard classes are served worse."""
    rng = np.random.default_rng(seed)
    alpha = np.full(num_classes, 0.4)
    sizes = rng.integers(20, 400, num_clients)
    shares = rng.dirichlet(alpha, num_clients)
    train = np.array([rng.multinomial(n, p) for n, p in zip(sizes, shares, strict=True)])
    test = np.array([rng.multinomial(max(10, n // 5), p) for n, p in zip(sizes, shares, strict=True)])
    test[list(untested)] = 0
    hard = shares[:, [c for c in hard_classes if c < num_classes]].sum(axis=1)

    rows, round_rows = [], []
    for t in range(rounds + 1):
        learned = 1 - math.exp(-4 * t / max(rounds, 1))
        evaluated = t % every == 0 or (t == rounds and status == "finished")
        skill = np.clip(0.1 + 0.85 * learned - 0.3 * hard * learned, 0.02, 0.995)
        picked = rng.random(num_clients) < sampled if t else np.zeros(num_clients, bool)
        for k in range(num_clients):
            n = int(test[k].sum())
            known = evaluated and n > 0
            rows.append(
                {
                    "round": t,
                    "client": k,
                    "train_examples": int(train[k].sum()),
                    "test_examples": n,
                    "sampled": bool(picked[k]),
                    "loss": -math.log(skill[k]) if picked[k] else math.nan,
                    "loss_after": -math.log(skill[k]) * 0.9 if picked[k] else math.nan,
                    "steps": 10,
                    "update_norm": 0.3,
                    "weight": 0.1,
                    "test_loss": -math.log(skill[k]) if known else math.nan,
                    "test_accuracy": rng.binomial(n, skill[k]) / n if known else math.nan,
                }
            )
        if t:
            row = {"round": t, "seconds": 0.4, "server_lr": 1.0, "num_sampled": int(picked.sum())}
            row |= {
                "num_failures": 0,
                "mean_loss": float(2.3 * math.exp(-4 * t / rounds) + 0.05 * rng.random()),
            }
            if central:
                row |= {
                    "central_accuracy": float(np.mean(skill)) if evaluated else math.nan,
                    "central_loss": 0.4,
                }
            if certificate:
                row |= {
                    "descent_min": float(0.02 + rng.normal(0, 0.01)),
                    "rate_spread": float(abs(rng.normal(0, 1e-6))),
                    "weight_min": float(rng.random() * 0.01),
                    "cond": float(10 ** (2 + 3 * rng.random())),
                    "cos_mean": float(0.6 + 0.3 * rng.random()),
                    "norm_ratio": float(0.8 + 0.3 * rng.random()),
                    "improved": float(0.7 + 0.3 * rng.random()),
                    "mode": "exact" if rng.random() < 0.9 else "convex",
                }
            round_rows.append(row)
    clients = pd.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    clients.to_parquet(folder / "clients.parquet")
    pd.DataFrame(round_rows).to_parquet(folder / "rounds.parquet")

    manifest = {
        "dataset": "digits",
        "dataset_options": {},
        "partition": "dirichlet",
        "partition_options": {"alpha": 0.4},
        "seed": seed,
        "num_clients": num_clients,
        "num_classes": num_classes,
        "class_names": [f"class {c}" if num_classes > 10 else str(c) for c in range(num_classes)],
        "sha256": "ab" * 32,
        "clients": [
            {
                "client": k,
                "name": names[k] if names else None,
                "train": train[k].tolist(),
                "test": test[k].tolist(),
            }
            for k in range(num_clients)
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "scenario.toml").write_text('name = "digits"\n[strategy]\nname = "adafed"  # <b>\n')
    (folder / "environment.json").write_text(json.dumps({"versions": {"torch": "2.11"}, "command": "run <it>"}))
    if status == "finished":
        (folder / "summary.json").write_text(json.dumps(summary_of(clients, num_clients, seed, rounds, central)))
    return folder


def summary_of(clients, num_clients, seed, rounds, central):
    last = clients[clients["round"] == rounds]
    first = clients[clients["round"] == 0]
    sizes = last["test_examples"]
    return {
        "scenario": f"digits-dirichlet-{num_clients}",
        "strategy": "adafed",
        "seed": seed,
        "rounds": rounds,
        "partition_sha256": "ab" * 32,
        "model_sha256": "cd" * 32,
        "status": "finished",
        "fairness": {
            "test_accuracy": fairness_block(last["test_accuracy"], sizes, higher_is_better=True),
            "test_loss": fairness_block(last["test_loss"], sizes, higher_is_better=False),
            "improved": improved_share(first["test_loss"], last["test_loss"]),
        },
        "central": {"accuracy": 0.8765, "loss": 0.4321} if central else None,
        "seconds": {"total": 83.0, "start": 3.0, "train": 60.0, "aggregate": 5.0, "evaluate": 15.0},
    }
