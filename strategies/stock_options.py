"""Flower's own strategies as a scenario names them: "flwr:FedTrimmedAvg", options by their own names.

Options come from the signature of the strategy's constructor, so a strategy that a later Flower brings is there
without a line here. Flower is imported when one of its strategies is named, not before.
"""

from __future__ import annotations

import inspect
import logging
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_args, get_type_hints

from pydantic import AfterValidator, Field, InstanceOf, create_model, model_validator

from clients.methods import LocalMethod
from clients.methods.proximal import Proximal
from fedsim.plugins import UnknownPluginError, nearest
from strategies.rules import AnyRule, LocalTraining, without_local_steps

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

PREFIX = "flwr:"

SAMPLING = "set server.clients_per_round"
EVALUATION = "every client is evaluated; set evaluation.every"
RECORDS = "the platform names its records itself"
METRICS = "what every client reports is in clients.parquet"

INSTEAD: Mapping[str, str] = {
    "fraction_train": SAMPLING,
    "min_train_nodes": SAMPLING,
    "min_available_nodes": SAMPLING,
    "fraction_evaluate": EVALUATION,
    "min_evaluate_nodes": EVALUATION,
    "weighted_by_key": RECORDS,
    "arrayrecord_key": RECORDS,
    "configrecord_key": RECORDS,
    "train_metrics_aggr_fn": METRICS,
    "evaluate_metrics_aggr_fn": METRICS,
    "selection_rule": "it is a Python function; Flower's default, Multi-Krum, is used",
    "accountant": "it is a Python object; work out epsilon from noise_multiplier, the clients a round and rounds",
}
"""Arguments of Flower's constructors that are no options, and what to use instead."""

ALL_NODES: Mapping[str, Any] = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
"""The platform draws the clients; the strategy takes all it is shown."""

INHERITED: Mapping[str, str] = {
    "client_learning_rate": "client.lr",
    "eta_l": "client.lr",
    "num_sampled_clients": "server.clients_per_round or partition.num_clients",
}

DEFAULTS: Mapping[str, Any] = {"train_loss_key": "loss"}
"""Where ours differ from Flower's: the loss at the received weights goes by this name here."""

_SHARE, _POSITIVE, _NOT_NEGATIVE = Field(ge=0.0, lt=1.0), Field(gt=0.0), Field(ge=0.0)

BOUNDS: Mapping[str, Any] = {
    "beta": Field(ge=0.0, lt=0.5),
    "beta_1": _SHARE,
    "beta_2": _SHARE,
    "client_learning_rate": _POSITIVE,
    "clip_norm_lr": _POSITIVE,
    "clipped_count_stddev": _NOT_NEGATIVE,
    "clipping_norm": _POSITIVE,
    "eta": _POSITIVE,
    "eta_l": _POSITIVE,
    "initial_clipping_norm": _POSITIVE,
    "noise_multiplier": _NOT_NEGATIVE,
    "num_malicious_nodes": Field(ge=0),
    "num_nodes_to_select": Field(ge=1),
    "num_sampled_clients": Field(ge=1),
    "proximal_mu": _NOT_NEGATIVE,
    "q": _NOT_NEGATIVE,
    "server_learning_rate": _POSITIVE,
    "server_momentum": _SHARE,
    "target_clipped_quantile": Field(ge=0.0, le=1.0),
    "tau": _POSITIVE,
}
"""Flower checks few of its options; a name means the same in all of its strategies."""

log = logging.getLogger("fedsim")


class StockOptions(AnyRule):
    """One of Flower's strategies; `find` makes a subclass for each.

    Attributes:
        flower_name: Name of the class in flwr.serverapp.strategy.
        nested: Options that are themselves a strategy.
        instead: What is no option, and what to use instead.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    flower_name: ClassVar[str]
    nested: ClassVar[tuple[str, ...]] = ()
    instead: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="after")
    def _flower_takes_it(self) -> Self:
        with flower_log(warnings=False):
            self.build(_strategies()["FedAvg"]())
        return self

    def notes(self) -> list[str]:
        """Say what a wrapper for differential privacy does not cover."""
        if not self.nested:
            return []
        return [
            "Flower scales the noise for a plain mean over the clients. Weights by examples, as in FedAvg, and "
            "rules that are no mean give one client more influence than that, so claim no epsilon for them. Losses "
            "and other numbers that clients send carry no noise at all."
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time: a worker makes its own.
        return _again, (self.plugin_name, {name: getattr(self, name) for name in type(self).model_fields})

    @property
    def plugin_name(self) -> str:
        """The name in a scenario."""
        return f"{PREFIX}{self.flower_name}"

    @property
    def inside(self) -> AnyRule | None:
        """What a wrapper wraps."""
        return getattr(self, self.nested[0]) if self.nested else None

    @property
    def rule(self) -> AnyRule | None:
        """The rule of ours that a wrapper wraps; None where the server's step is all Flower's."""
        return None if isinstance(self.inside, StockOptions) else self.inside

    @property
    def default_server_lr(self) -> float:
        """That of the rule of ours inside."""
        return self.rule.default_server_lr if self.rule is not None else 1.0

    @property
    def rate(self) -> str | None:
        """The option that is the server's learning rate, such as "eta"."""
        if isinstance(self.inside, StockOptions):
            return f"{self.nested[0]}.{self.inside.rate}" if self.inside.rate else None
        return next((name for name in ("server_learning_rate", "eta") if name in type(self).model_fields), None)

    def reports(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the numbers every client must send, and those used where they are sent."""
        if isinstance(self.inside, StockOptions):
            return self.inside.reports()
        if self.inside is not None:
            return self.inside.needs, ("loss", *self.inside.wants)
        options = type(self).model_fields
        loss = (str(self._option("train_loss_key")),) if "train_loss_key" in options else ()
        return (*loss, "proximal") if "proximal_mu" in options else loss, ()

    def local(self) -> LocalMethod | None:
        """Return FedProx's client half: Flower sends mu and leaves the term to the client."""
        if self.inside is not None:
            return self.inside.local()
        mu = self._option("proximal_mu")
        return None if mu is None else Proximal(float(mu))

    def conflicts(self, training: LocalTraining) -> list[str]:
        """Return what does not go with the clients' training, each "option: problem"."""
        if self.inside is not None:
            return [f"{self.nested[0]}.{problem}" for problem in self.inside.conflicts(training)]
        if self._option("client_learning_rate") and training.local_epochs < 1:
            divides = "gradients are estimated as updates divided by it"
            return [f"client_learning_rate: {divides}, so it needs client.local_epochs >= 1, got 0"]
        return without_local_steps("proximal_mu", training) if self._option("proximal_mu") else []

    def misfits(self, parts: Mapping[str, Any]) -> list[str]:
        """Return what does not go with the other sections of a scenario, each "section.option: problem"."""
        server, client, engine = parts["server"], parts["client"], parts["engine"]
        found = []
        if self.rule is None:
            own = f"set strategy.{self.rate}" if self.rate else "leave it out"
            if server.lr is not None:
                found.append(f"server.lr: {self.plugin_name} takes its own step, got {server.lr}; {own}")
            if server.lr_decay != 1.0:
                found.append(f"server.lr_decay: {self.plugin_name} takes its own step, got {server.lr_decay}")
        count = server.clients_per_round or getattr(parts["partition"], "num_clients", None)
        if count is not None:
            found += [f"strategy.{problem}" for problem in self.shortage(count)]
        if self.nested and engine.max_failures:
            found.append(
                f"engine.max_failures: {self.plugin_name} scales its noise to the sampled clients and cannot do "
                f"without one, must be 0, got {engine.max_failures}"
            )
        system = parts.get("system")
        if self.nested and system is not None and not system.complete:
            found.append(
                f"system: {self.plugin_name} scales its noise to a fixed number of clients, and with this "
                'availability, dropout or deadline fewer may answer; set availability.name to "always" and leave '
                "the others out"
            )
        return found + [f"strategy.{problem}" for problem in self._rate_without_effect(client.lr)]

    def shortage(self, count: int) -> list[str]:
        """Return why a number of clients in a round will not do, each "option: problem"."""
        if self.nested:
            problems = []
            if isinstance(self.inside, StockOptions):
                problems = [f"{self.nested[0]}.{problem}" for problem in self.inside.shortage(count)]
            stated = self._option("num_sampled_clients")
            if stated != count:
                problems.append(
                    f"num_sampled_clients: must be {count}, as many clients as train in a round, got {stated}"
                )
            return problems
        problems = []
        malicious, selected = self._option("num_malicious_nodes"), self._option("num_nodes_to_select")
        factor = 4 if self.flower_name == "Bulyan" else 2
        if malicious is not None and count < factor * malicious + 3:
            problems.append(
                f"num_malicious_nodes: {self.plugin_name} needs {factor} * {malicious} + 3 = "
                f"{factor * malicious + 3} clients in a round, got {count}; raise server.clients_per_round"
            )
        if selected is not None and count < selected:
            problems.append(f"num_nodes_to_select: must be at most the {count} clients of a round, got {selected}")
        return problems

    def build(self, inner: Strategy | None = None) -> Strategy:
        """Return Flower's strategy.

        Args:
            inner: What a wrapper wraps.

        Raises:
            ValueError: Flower refuses an option.
        """
        kind = _strategies()[self.flower_name]
        taken = inspect.signature(kind).parameters
        options = {name: getattr(self, name) for name in type(self).model_fields if name not in self.nested}
        given = {name: value for name, value in ALL_NODES.items() if name in taken}
        return kind(**given, **options, **dict.fromkeys(self.nested, inner))

    def _option(self, name: str) -> Any:
        return getattr(self, name, None)

    def _rate_without_effect(self, lr: float) -> list[str]:
        if isinstance(self.inside, StockOptions):
            return [f"{self.nested[0]}.{problem}" for problem in self.inside._rate_without_effect(lr)]
        eta_l = self._option("eta_l")
        if eta_l in (None, lr):
            return []
        return [f"eta_l: the clients train with client.lr = {lr}, got {eta_l}; leave it out"]


def names() -> list[str]:
    """Return the names of Flower's strategies that a scenario can use."""
    return [f"{PREFIX}{name}" for name in sorted(_strategies()) if _refusal(name) is None]


def describe(name: str) -> str:
    """Return a line about a strategy from its own docstrings."""
    kind = _strategies()[name.removeprefix(PREFIX)]
    lines = [(inspect.getdoc(item) or "").split("\n")[0] for item in (kind, sys.modules[kind.__module__])]
    return next((line for line in lines if "[" in line), lines[0])  # the line that names the paper, if any


@lru_cache
def find(name: str) -> type[StockOptions]:
    """Return the options of the strategy called `name`, with its prefix.

    Raises:
        UnknownPluginError: There is none, or it cannot be used here; says why.
    """
    flower_name = name.removeprefix(PREFIX)
    refusal = _refusal(flower_name)
    if flower_name not in _strategies() and refusal is None:
        known = names()
        raise UnknownPluginError(
            f'no such strategy of Flower "{name}"{nearest(name, known)} there are {", ".join(known)}'
        )
    if refusal is not None:
        raise UnknownPluginError(f'"{name}" cannot be used: {refusal}')
    kind = _strategies()[flower_name]
    fields, nested = _fields(kind)
    made = create_model(flower_name, __base__=StockOptions, __doc__=inspect.getdoc(kind), **fields)
    made.flower_name, made.nested = flower_name, nested
    made.inherits = {option: source for option, source in INHERITED.items() if option in fields}
    made.instead = {name: INSTEAD[name] for name in inspect.signature(kind).parameters if name in INSTEAD}
    return made


@contextmanager
def flower_log(*, warnings: bool = True) -> Iterator[None]:
    """Keep what Flower says at every step off the terminal; its warnings go to the platform's log."""

    def aside(record: logging.LogRecord) -> bool:
        if warnings and record.levelno >= logging.WARNING:
            log.log(record.levelno, "Flower: %s", record.getMessage())
        return False

    flower = logging.getLogger("flwr")
    flower.addFilter(aside)
    try:
        yield
    finally:
        flower.removeFilter(aside)


@lru_cache
def _strategies() -> dict[str, type[Strategy]]:
    from flwr.serverapp import strategy

    exported = {name: getattr(strategy, name) for name in strategy.__all__}
    return {
        name: item
        for name, item in exported.items()
        if inspect.isclass(item) and issubclass(item, strategy.Strategy) and not inspect.isabstract(item)
    }


def _refusal(flower_name: str) -> str | None:
    if flower_name.startswith("FedXgb"):
        return "it adds up boosted trees, and the models here are networks; name another strategy"
    side, twin = "ClientSide", flower_name.replace("ClientSide", "ServerSide")
    if side in flower_name:
        return (
            "it leaves the clipping to a mod of Flower's in the clients, and the clients here have none, so that "
            f'nothing would be clipped; "{PREFIX}{twin}" clips the same updates to the same norm on the server'
        )
    return None


def _fields(kind: type[Strategy]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a strategy's options as pydantic fields, and which of them are strategies themselves."""
    from flwr.serverapp.strategy import Strategy as Base

    hints = get_type_hints(kind.__init__)
    fields: dict[str, Any] = {}
    nested = []
    for name, parameter in inspect.signature(kind).parameters.items():
        hint = hints.get(name)
        if name in INSTEAD or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else DEFAULTS.get(name, parameter.default)
        if hint is Base:
            nested.append(name)
            fields[name] = (Annotated[InstanceOf[AnyRule], AfterValidator(_wrappable)], ...)
        elif _plain(hint):
            fields[name] = (Annotated[hint, BOUNDS[name]] if name in BOUNDS else hint, default)
        elif default is ...:
            raise UnknownPluginError(f'"{PREFIX}{kind.__name__}" cannot be used: no scenario can say its {name}')
    return fields, tuple(nested)


def _plain(hint: Any) -> bool:
    kinds = set(get_args(hint)) - {types.NoneType} if isinstance(hint, types.UnionType) else {hint}
    return kinds <= {int, float, str, bool}


def _wrappable(inner: AnyRule) -> AnyRule:
    """Refuse what would be another algorithm inside a wrapper."""
    name = inner.plugin_name
    if isinstance(inner, StockOptions) and inner.nested:
        raise ValueError(f"a wrapper cannot wrap a wrapper, got {name}")
    if "rate" in inner.needs:
        raise ValueError(f"{name} needs curvature from its clients, which no wrapper of Flower's passes on")
    method = inner.local()
    if method is not None and method.stateful and not method.personal:
        raise ValueError(
            f"{name} follows on the server what its clients keep, and updates clipped on the way would part the "
            "two; name a rule whose clients keep nothing"
        )
    return inner


def _again(name: str, options: dict[str, Any]) -> StockOptions:
    return find(name).model_construct(**options)
