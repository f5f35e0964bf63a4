"""Study folders as a comparison study leaves them, with invented accuracies and statistics worked out from them."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pandas as pd

from fedsim import statistics
from fedsim.fairness import CONVENTIONS, better, fairness_block

METRICS = ("mean", "worst_10", "std")
EVIL = 'O\'Neil & "co" <b>bold</b> $x_1^2$ 50% #1 \\dag'


def make_study(
    folder,
    *,
    scenarios=("mnist_shards",),
    methods=("fedavg", "qfedavg", "adafed[scale=min]", "term"),
    seeds=5,
    partitions=None,
    num_clients=20,
    rounds=10,
    every=2,
    failed=(),
    missing=(),
    lost=(),
    system=False,
    tuned=False,
    status="finished",
    names=None,
    shared_partition=False,
    gaps=None,
    metrics=METRICS,
):
    """Write a study folder.

    Args:
        folder: Where.
        failed, missing: (scenario, method, seed) of runs that failed or have not been run.
        lost: The same, of finished runs whose folder is gone.
        partitions: Number of partitions, crossed with the seeds; None where the partition follows the seed.
        names: Names of the clients.
        shared_partition: All pairs have one partition though it follows the seed, as natural ones without a split.
        gaps: Method -> what it adds to the skill of the clients served worst.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [(None, s) for s in range(seeds)] if partitions is None else None
    pairs_of = drawn or [(p, s) for p in range(partitions) for s in range(seeds)]
    gaps = gaps or {m: 0.04 * i % 0.17 for i, m in enumerate(methods)}
    pairs, runs = [], []
    for scenario in scenarios:
        for partition, seed in pairs_of:
            mark = f"{scenario}/{partition if partition is not None else '' if shared_partition else seed}"
            sha = f"{hash_of(mark):064x}"
            pairs.append(
                {"scenario": scenario, "partition": partition, "seed": seed, "partition_sha256": sha,
                 "data_sha256": "da" * 32, "initial_sha256": f"{seed:064x}", "samples_sha256": None}
            )  # fmt: skip
            hard = np.random.default_rng(hash_of(mark) % 2**32).beta(1.2, 3, num_clients)
            noise = rng.normal(0, 0.006)
            for method in methods:
                key = (scenario, method, seed)
                state = "failed" if key in failed else "missing" if key in missing else "finished"
                name = f"{len(runs):03d}"
                run = {
                    "scenario": scenario, "method": method, "partition": partition, "seed": seed, "status": state,
                    "folder": f"runs/{name}", "digest": name * 4, "rounds": rounds, "seconds": 12.5 + len(runs),
                    "error": "client 3, round 4: its update is not finite <nan>" if state == "failed" else None,
                    "model_sha256": None, "commit": "5cb1cec" + "0" * 33, "versions": {"torch": "2.15.0"},
                    "measures": dict.fromkeys(CONVENTIONS), "loss": dict.fromkeys(CONVENTIONS),
                    "central": None, "system": None,
                }  # fmt: skip
                runs.append(run)
                if state != "finished":
                    continue
                skill = 0.93 + noise + rng.normal(0, 0.004) - hard * (0.45 - gaps[method])
                accuracy, loss = write_run(
                    folder / "runs" / name, rng, skill, run, rounds, every, sha, system, names,
                    written=key not in lost,
                )  # fmt: skip
                sizes = np.full(num_clients, 50)
                run["measures"] = fairness_block(accuracy, sizes, higher_is_better=True)
                run["loss"] = fairness_block(loss, sizes, higher_is_better=False)
                run["central"] = {"accuracy": float(accuracy.mean()), "loss": 0.4}
                if system:
                    run["system"] = {
                        "seconds": 600.0 * rounds,
                        "bytes_down": 1e6 * rounds,
                        "bytes_up": 5e5 * rounds,
                    }
    baseline = "fedavg" if "fedavg" in methods else methods[0]
    results = results_of(scenarios, methods, baseline, pairs, runs, metrics)
    info = {
        "layout": 1, "name": "fair-rules", "description": "Do fair rules serve the worst tenth better?",
        "tier": "smoke", "command": "python run_sim.py compare scenarios/fair_rules.toml --out 'studies/a b'",
        "status": status,
        "design": {
            "scenarios": [
                {"name": s, "description": f"Invented data of {s}.", "dataset": "digits", "partition": "shards",
                 "model": "logistic", "num_clients": num_clients, "clients_per_round": 10, "rounds": rounds,
                 "toml": f'name = "{s}"\nrounds = {rounds}  # <base>\n', "notes": []}
                for s in scenarios
            ],
            "methods": [
                {"label": m, "strategy": m.split("[")[0], "notes": [],
                 "changes": ["strategy.scale=min"] if "[" in m else [],
                 "settings": {s: settings_of(m, s) for s in scenarios}}
                for m in methods
            ],
            "baseline": baseline, "seeds": list(range(seeds)),
            "partitions": None if partitions is None else list(range(partitions)),
            "metrics": list(metrics), "level": 0.95, "alpha": 0.05, "min_pairs": 5,
        },
        "pairs": pairs, "runs": runs, "tuning": tuning_of(scenarios, methods) if tuned else None,
        "results": results, "wins": wins_of(scenarios, methods, baseline, runs),
        "ranks": ranks_of(scenarios, methods, results, metrics) if len(scenarios) > 1 else [],
        "pareto": [front_of(s, methods, results) for s in scenarios],
        "words": [f"On {s}, some methods serve the worst tenth better than {baseline}." for s in scenarios],
        "warnings": ["1 run failed: see below."] if failed else [],
        "environment": {"python": "3.11", "torch": "2.15.0", "commit": "5cb1cec" + "0" * 33, "cpu_cores": 2,
                        "gpu": None, "system": "Linux"},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(plain(info), allow_nan=False))
    return folder


def edit(folder, change):
    """Let `change` edit study.json in place."""
    info = json.loads((folder / "study.json").read_text())
    change(info)
    (folder / "study.json").write_text(json.dumps(info))
    return folder


def hash_of(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def write_run(folder, rng, skill, run, rounds, every, sha, system, names, *, written):
    clients, rows = [], []
    count = len(skill)
    accuracy = loss = np.zeros(count)
    for t in range(rounds + 1):
        evaluated = t % every == 0 or t == rounds
        now = np.clip(0.1 + (skill - 0.1) * (1 - math.exp(-5 * t / rounds)), 0.02, 0.995)
        row = {"round": t, "seconds": 0.5}
        if system:
            row |= {"simulated_time": 600.0 * t, "bytes_down": 1e6 if t else 0.0, "bytes_up": 5e5 if t else 0.0}
        if evaluated:
            accuracy = rng.binomial(50, now) / 50
            loss = -np.log(now)
            block = fairness_block(accuracy, np.full(count, 50), higher_is_better=True)
            row |= {"mean_accuracy": block["mean"], "worst_10": block["worst_10"], "std": block["std"]}
            clients.append(
                pd.DataFrame(
                    {"round": t, "client": np.arange(count), "train_examples": 200, "test_examples": 50,
                     "test_loss": loss, "test_accuracy": accuracy}
                )
            )  # fmt: skip
        rows.append(row)
    if written:
        folder.mkdir(parents=True)
        pd.concat(clients).to_parquet(folder / "clients.parquet", index=False)
        pd.DataFrame(rows).to_parquet(folder / "rounds.parquet", index=False)
        manifest = {
            "dataset": "digits", "num_clients": count, "num_classes": 2, "sha256": sha,
            "clients": [
                {"client": k, "name": names[k] if names else None, "train": [100, 100], "test": [25, 25]}
                for k in range(count)
            ],
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "scenario.toml").write_text(f'name = "{run["scenario"]}"\n')
        (folder / "environment.json").write_text("{}")
        (folder / "summary.json").write_text(json.dumps({"status": "finished", "rounds": rounds}))
    return accuracy, loss


def results_of(scenarios, methods, baseline, pairs, runs, metrics):
    value = {(r["scenario"], r["method"], r["partition"], r["seed"]): r for r in runs}
    further = [name for name in CONVENTIONS if name not in ("n", *metrics)]
    named = {name: ("measures", name) for name in (*metrics, *further)}
    named |= {f"loss_{name}": ("loss", name) for name in ("mean", "worst_10")}
    ways = {n: better(name, higher_is_better=block == "measures") for n, (block, name) in named.items()}
    results = []
    for scenario in scenarios:
        mine = [pair for pair in pairs if pair["scenario"] == scenario]
        # Crossed partitions are averaged over for each seed; a seed that lacks one has no value.
        partitions = len({pair["partition"] for pair in mine})
        columns = {
            method: {
                metric: np.array(
                    [value[scenario, method, p["partition"], p["seed"]][block][name] for p in mine], dtype=float
                )
                for metric, (block, name) in named.items()
            }
            for method in methods
        }
        tested = {
            method: {metric: column.reshape(partitions, -1).mean(axis=0) for metric, column in of.items()}
            for method, of in columns.items()
        }
        differences = statistics.compare(tested, baseline, metrics, ways)
        for metric in named:
            for method in methods:
                column, seen = columns[method][metric], tested[method][metric]
                about = statistics.describe(seen[~np.isnan(seen)])
                results.append(
                    {
                        "scenario": scenario,
                        "method": method,
                        "metric": metric,
                        "better": ways[metric],
                        "tested": metric in metrics,
                        "values": column.tolist(),
                        **about._asdict(),
                        "difference": differences[method][metric],
                    }
                )
    return results


def wins_of(scenarios, methods, baseline, runs):
    done = {(r["scenario"], r["method"]) for r in runs if r["status"] == "finished"}
    return [
        {"scenario": s, "method": m, "better": 0.6, "equal": 0.1, "worse": 0.3, "interval": [0.5, 0.7], "n": 5}
        for s in scenarios
        for m in methods
        if m != baseline and (s, m) in done and (s, baseline) in done
    ]


def ranks_of(scenarios, methods, results, metrics):
    found = []
    for metric in metrics:
        table = np.array(
            [[r["mean"] for r in results if r["scenario"] == s and r["metric"] == metric] for s in scenarios], float
        )
        ranked = statistics.ranks(table, higher_is_better=CONVENTIONS[metric][1] == "higher")
        found.append(
            {"metric": metric, "scenarios": list(scenarios), "methods": list(methods),
             "average": ranked.average.tolist(), "friedman": ranked.friedman._asdict(),
             "critical_difference": ranked.critical_difference,
             "cliques": [[methods[place] for place in clique] for clique in ranked.cliques]}
        )  # fmt: skip
    return found


def front_of(scenario, methods, results):
    at = {(r["method"], r["metric"]): r["mean"] for r in results if r["scenario"] == scenario}
    n = {r["method"]: r["n"] for r in results if r["scenario"] == scenario and r["metric"] == "mean"}
    known = [m for m in methods if n[m] == max(n.values()) > 0]
    front = statistics.pareto(np.array([[at[m, "mean"], at[m, "worst_10"]] for m in known]).reshape(-1, 2))
    methods = [m for m, is_on in zip(known, front, strict=True) if is_on]
    return {"scenario": scenario, "x": "mean", "y": "worst_10", "methods": methods}


def settings_of(method, scenario):
    own = {"term": {"t": 2.0, "weighting": "examples"}, "qfedavg": {"q": 0.1 + len(scenario) / 100}}
    return {
        "strategy.name": method.split("[")[0],
        **{f"strategy.{name}": value for name, value in own.get(method, {"scale": method}).items()},
        "client.lr": 0.05 if method == "term" else 0.1,
        "server.lr": 1.0,
        "server.lr_decay": None,
        **({"client.local_epochs": 3} if method == "term" else {}),
    }


def tuning_of(scenarios, methods):
    grid = {"client.lr": [0.01, 0.05, 0.1]}
    trials = [
        {"scenario": s, "method": m, "values": {"client.lr": lr},
         "score": None if lr == 0.1 and m == "term" else 0.8,
         "error": "diverged" if lr == 0.1 and m == "term" else None}
        for s in scenarios
        for m in methods
        for lr in grid["client.lr"]
    ]  # fmt: skip
    chosen = [
        {"scenario": s, "method": m, "values": {"client.lr": 0.1}, "score": 0.83, "at_edge": ["client.lr"]}
        for s in scenarios
        for m in methods
    ]
    return {"metric": "mean", "budget": 3, "fraction": 0.2, "seeds": [0], "trials": trials,
            "grids": dict.fromkeys(methods, grid), "chosen": chosen}  # fmt: skip


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
