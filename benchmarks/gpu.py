"""Clients trained in a block beside one after the other, and a whole study of the fair literature, on a GPU.

    python benchmarks/gpu.py                     # every model, 10 and 100 clients; reduced on a CPU
    python benchmarks/gpu.py --study fedavg,adafed --rounds 2000

Needs PyTorch and this repository only, neither Flower nor Ray. Times are medians of rounds that took turns; a
ratio is the median of ratios of neighbours. `plain` is one network on one stream of batches of the same size: what
the device does when nobody federates. The study is FedFV's and AdaFed's setting: CIFAR-10 (from FEDSIM_DATA, as
image folders or as torchvision keeps it), 100 clients of two label shards, ten a round, batches of 50, `cnn`; it
reports accuracy over clients. Figures go to docs/benchmarks.md with the date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from clients import cohort  # noqa: E402
from clients.evaluation import evaluate  # noqa: E402
from clients.steps import Client, set_precision  # noqa: E402
from clients.training import Work, fit_each, fit_stacked  # noqa: E402
from fedsim import plugins, seeds  # noqa: E402
from fedsim.datasets import Dataset, Split, data_root  # noqa: E402
from fedsim.errors import DataError  # noqa: E402
from fedsim.fairness import fairness_block  # noqa: E402
from fedsim.federation import Federation  # noqa: E402
from fedsim.metrics import measured  # noqa: E402
from fedsim.models import Model  # noqa: E402
from fedsim.models._check import build_model  # noqa: E402
from fedsim.parameters import FlatNetwork  # noqa: E402
from fedsim.partitions import Partition  # noqa: E402
from fedsim.settings import ClientSettings  # noqa: E402
from strategies.rules import AnyRule, Cohort, MemoryRule  # noqa: E402

MODELS = {
    "logistic": ((1, 28, 28), 10),
    "mlp": ((1, 28, 28), 10),
    "cnn": ((3, 32, 32), 20),
    "cnn_wide": ((3, 32, 32), 20),
    "resnet18_gn": ((3, 32, 32), 64),
}
"""Model -> shape of an example and batch size."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    clients: tuple[int, ...]
    examples: int
    rounds: int


def synchronised(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object], device: torch.device) -> float:
    start = synchronised(device)
    work()
    return synchronised(device) - start


def network_of(name: str, shape: tuple[int, ...], device: torch.device, *, half: bool) -> FlatNetwork:
    model = plugins.find("fedsim.models", name, Model)()  # type: ignore[type-abstract]
    return FlatNetwork(build_model(model, shape, 10, 0), device, half=half)


def stream_of(number: int, client: int) -> Callable[[str], torch.Generator]:
    return lambda purpose: seeds.generator(0, purpose, number, client)


def plain(model: FlatNetwork, pool: Split, batch: int, examples: int) -> None:
    """One network, one stream of batches: no federation at all."""
    model.network.train()
    for start in range(0, examples, batch):
        model.grad.zero_()
        logits = model.outputs(pool.x[start : start + batch]).logits
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, pool.y[start : start + batch]))
        model.theta.sub_(model.grad, alpha=0.01)


def measure(name: str, count: int, size: Size, device: torch.device, *, half: bool) -> dict[str, object]:
    """Time rounds of `count` clients, each way."""
    shape, batch = MODELS[name]
    model = network_of(name, shape, device, half=half)
    generator = seeds.generator(0, "benchmark")
    total = count * size.examples
    pool = Split(
        torch.randn(total, *shape, generator=generator), torch.randint(0, 10, (total,), generator=generator)
    ).to(device)
    theta = model.theta.clone()
    settings = ClientSettings(batch_size=batch, lr=0.01)
    work = Work(settings, 0.01, before=False, after=False, largest=size.examples)
    clients = [Client(range(k * size.examples, (k + 1) * size.examples), stream_of(0, k)) for k in range(count)]
    block = cohort.block_size(model, pool.x[:batch], count)
    blocks = [clients[start : start + block] for start in range(0, count, block)]

    def stacked() -> None:
        for members in blocks:
            fit_stacked(model, theta, pool, members, work)

    ways: dict[str, Callable[[], object]] = {
        "each": lambda: fit_each(model, theta, pool, clients, work),
        "stacked": stacked,
        "plain": partial(plain, model, pool, batch, total),
    }
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(size.rounds):
        for way, run in ways.items():
            seconds[way].append(timed(run, device))
    ratios = [each / one for each, one in zip(seconds["each"], seconds["stacked"], strict=True)]
    against = [one / other for one, other in zip(seconds["plain"], seconds["stacked"], strict=True)]
    chosen, _, reason = cohort.choose(model, settings, pool.x[:batch], pool.y[:batch], count)
    return {
        "model": name,
        "clients": count,
        "block": block,
        **{f"{way}_s": statistics.median(times) for way, times in seconds.items()},
        "stacked_x_each": statistics.median(ratios),
        "stacked_of_plain": statistics.median(against),
        "auto": chosen,
        "reason": reason,
    }


def federation(limit: int | None) -> Federation:
    """CIFAR-10 in two label shards for each of 100 clients."""
    shards = plugins.find("fedsim.partitions", "shards", Partition)(num_clients=100, shards_per_client=2)  # type: ignore[type-abstract,call-arg]
    problems = []
    for name, options in (("imagefolder", {"path": "cifar10"}), ("cifar10", {})):
        data = plugins.find("fedsim.datasets", name, Dataset)(**options, limit=limit)  # type: ignore[type-abstract]
        try:
            return Federation.build(data, shards, 0, data_root())
        except DataError as error:
            problems.append(str(error))
    raise SystemExit("no CIFAR-10: " + "; ".join(problems))


def study(rules: list[str], rounds: int, limit: int | None, device: torch.device, *, half: bool) -> None:
    """FedFV's and AdaFed's setting with each rule, in blocks where that is faster."""
    found = federation(limit)
    model = network_of("cnn", found.input_shape, device, half=half)
    pool, test = found.train.to(device), found.test.to(device)
    initial, offsets = model.theta.clone(), found.train_offsets
    settings = ClientSettings(batch_size=50, lr=0.05, lr_decay=0.999)
    chosen, block, _ = cohort.choose(model, settings, pool.x[:50], pool.y[:50], 10)
    print(f"\nCIFAR-10, 100 clients x 2 shards, 10 a round, {rounds} rounds, cnn, {chosen}")
    print(f"{'rule':<14}{'s a run':>9}{'mean':>8}{'std':>8}{'worst 10 %':>12}{'best 10 %':>11}")
    for name in rules:
        rule = plugins.find("strategies.rules", name, AnyRule)()  # type: ignore[type-abstract]
        memory = rule.initial_memory() if isinstance(rule, MemoryRule) else None
        theta = initial.clone()
        start = synchronised(device)
        for number in range(1, rounds + 1):
            draw = torch.randperm(100, generator=seeds.generator(0, "sample", number))[:10].sort().values.tolist()
            lr = settings.lr * settings.lr_decay ** (number - 1)
            work = Work(settings, lr, after=False, largest=int(found.train_sizes.max()), method=rule.local())
            clients = [Client(range(int(offsets[k]), int(offsets[k + 1])), stream_of(number, k)) for k in draw]
            how = fit_stacked if chosen == "stacked" else fit_each
            fits = [f for s in range(0, 10, block) for f in how(model, theta, pool, clients[s : s + block], work)]
            sizes = torch.tensor([fit.report["num-examples"] for fit in fits], dtype=torch.float64)
            sent = Cohort(
                torch.stack([fit.update for fit in fits]),
                torch.tensor([fit.report["loss"] for fit in fits], dtype=torch.float64),
                sizes / sizes.sum(),
                tuple(draw),
                {"steps": torch.tensor([fit.report["steps"] for fit in fits], dtype=torch.float64)},
                server_lr=rule.default_server_lr,
                server_round=number,
                num_clients=100,
                layers=model.layout.layers,
            )
            if isinstance(rule, MemoryRule):
                direction, memory = rule.direction(sent, memory)
            else:
                direction = rule.direction(sent)  # type: ignore[attr-defined]
            theta = theta - rule.default_server_lr * direction.vector
        seconds = synchronised(device) - start
        column = evaluate(model, theta, test, found.test_sizes.tolist(), measured())["accuracy"]
        numbers = fairness_block(column, found.test_sizes, higher_is_better=True)
        print(
            f"{name:<14}{seconds:>9.1f}{numbers['mean']:>8.3f}{numbers['std']:>8.3f}{numbers['worst_10']:>12.3f}"
            f"{numbers['best_10']:>11.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="some of %(default)s, with commas")
    parser.add_argument("--clients", default="")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of the study")
    parser.add_argument("--study", default="", help="rules, with commas; none leaves it out")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--tf32", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = Size((10, 100), 500, 5)
    if device.type == "cpu":
        size = Size((10,), 60, 3)
        torch.set_num_threads(1)
        print("no GPU here: reduced sizes, on one CPU thread")
    if given.clients:
        size = Size(tuple(int(count) for count in given.clients.split(",")), size.examples, size.rounds)
    set_precision("tf32" if given.tf32 else "float32", device)
    what = torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU"
    print(f"{what}, torch {torch.__version__}, {size.examples} examples a client, {time.strftime('%Y-%m-%d')}")
    print(
        f"{'model':<13}{'clients':>8}{'block':>7}{'each s':>9}{'stacked s':>11}{'x each':>8}{'of plain':>10}  auto"
    )
    rows = []
    unknown = set(given.models.split(",")) - {*MODELS, ""}
    if unknown:
        raise SystemExit(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    for name in given.models.split(",") if given.models else []:
        slow = device.type == "cpu" and name == "resnet18_gn"
        here = Size((2,), 16, 1) if slow else size
        for count in here.clients:
            row = measure(name, count, here, device, half=given.bf16)
            rows.append(row)
            print(
                f"{name:<13}{count:>8}{row['block']:>7}{row['each_s']:>9.4f}{row['stacked_s']:>11.4f}"
                f"{row['stacked_x_each']:>8.2f}{row['stacked_of_plain']:>10.2f}  {row['auto']}",
                flush=True,
            )
    folder = HOME / "benchmarks" / "out"
    folder.mkdir(exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(rows, indent=2))
    if given.study:
        reduced = device.type == "cpu"
        rounds = given.rounds or (5 if reduced else 2000)
        study(given.study.split(","), rounds, 2000 if reduced else None, device, half=given.bf16)


if __name__ == "__main__":
    main()
