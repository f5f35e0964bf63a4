"""Distillation: KD, TTM and WTTM by their formulas, and where the teacher comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clients.hooks.distill import Distill
from clients.objective import Objective
from clients.steps import Client
from clients.training import Work, fit_each, shapes_of, teachers_of
from fedsim import seeds
from fedsim.models import Outputs
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings
from tests.clients.hooks.small import (
    NUM_CLASSES,
    Recorder,
    full_batch,
    gradient_of,
    kl,
    model,
    outputs_at,
    plain_loss,
    said,
    shapes,
    shard,
    start,
    step,
    trained,
)


def softened(logits: Tensor, power: float) -> Tensor:
    """p^g / sum p^g."""
    p = logits.softmax(-1) ** power
    return p / p.sum(-1, keepdim=True)


def distance(kind: str, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Of one example, from its logits."""
    p = softened(teacher, 1 / temperature)
    if kind == "kd":
        return temperature**2 * kl(p, softened(student, 1 / temperature))
    weight = (teacher.softmax(-1) ** (1 / temperature)).sum() if kind == "wttm" else 1.0
    return weight * kl(p, student.softmax(-1))


def losses(teacher: Outputs, student: Outputs, **options: Any) -> Tensor:
    targets = torch.zeros(len(student.logits), dtype=torch.int64)
    return Distill(**options).loss(step({}, len(targets), teacher=teacher), student, targets)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["kd", "ttm", "wttm"])
def test_the_loss_of_each_example(kind: str, temperature: float) -> None:
    teacher, student = said(9, 1)[0], said(9, 2)[0]
    found = losses(teacher, student, kind=kind, temperature=temperature, weight=0.3)
    for i in range(9):
        expected = 0.3 * distance(kind, teacher.logits[i], student.logits[i], temperature)
        torch.testing.assert_close(found[i], expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("temperature", [2.0, 10.0])
def test_kd_is_ttm_with_a_renyi_entropy(temperature: float) -> None:
    """KL(p_T || q_T) = g KL(p_T || q) + (1 - g) (H_g(q) - H(p_T)), g = 1 / T, H_g = log(sum q^g) / (1 - g)."""
    g = 1 / temperature
    teacher, student = said(9, 1)[0], said(9, 2)[0]
    kd = losses(teacher, student, kind="kd", temperature=temperature) / temperature**2
    ttm = losses(teacher, student, kind="ttm", temperature=temperature)
    q, p = student.logits.softmax(1), softened(teacher.logits, g)
    renyi = (q**g).sum(1).log() / (1 - g)
    entropy = -(p * p.log()).sum(1)
    torch.testing.assert_close(kd, g * ttm + (1 - g) * (renyi - entropy), rtol=1e-10, atol=1e-13)


def test_at_a_temperature_of_1_all_kinds_are_the_same() -> None:
    teacher, student = said(9, 1)[0], said(9, 2)[0]
    found = [losses(teacher, student, kind=kind, temperature=1.0) for kind in ("kd", "ttm", "wttm")]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-14)


def test_weights_of_wttm_are_1_for_a_sure_teacher_and_largest_for_an_unsure_one() -> None:
    sure = torch.tensor([[1e3, 0.0, 0.0, 0.0]], dtype=torch.float64)
    unsure, student = torch.zeros(1, NUM_CLASSES, dtype=torch.float64), said(1, 2)[0]
    for logits, weight in ((sure, 1.0), (unsure, NUM_CLASSES ** (1 - 1 / 5))):
        teacher = Outputs(logits, logits)
        ttm, wttm = (losses(teacher, student, kind=kind, temperature=5.0) for kind in ("ttm", "wttm"))
        torch.testing.assert_close(wttm, weight * ttm, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["kd", "ttm"])
def test_at_the_received_weights_kd_has_no_gradient_and_ttm_has_one(kind: Any) -> None:
    """The first step's student is its own teacher; without a temperature it is pulled to be softer."""
    found = full_batch(Distill(kind=kind, temperature=3.0, weight=2.0))
    plain = gradient_of(start(), shard(), plain_loss)
    if kind == "kd":
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-13)
    else:
        assert float((found - plain).norm()) > 0.01


@pytest.mark.parametrize("kind", ["kd", "ttm", "wttm"])
def test_a_step_is_autograd_of_the_formula_with_a_teacher_of_one_s_own(kind: Any) -> None:
    theta, data = start(), shard()
    other = torch.randn(theta.shape, generator=seeds.generator(8), dtype=torch.float64)
    teacher = outputs_at(other, data.x).logits

    def loss(outputs: Outputs, targets: Tensor) -> Tensor:
        every = [distance(kind, p, q, 2.0) for p, q in zip(teacher, outputs.logits, strict=True)]
        return plain_loss(outputs, targets) + 0.4 * torch.stack(every).mean()

    hook = Distill(kind=kind, weight=0.4, source="a file")
    found = full_batch(hook, files={"distill": other})
    torch.testing.assert_close(found, gradient_of(theta, data, loss), rtol=1e-9, atol=1e-12)


def test_the_teacher_stays_what_was_received(recorder: Recorder) -> None:
    theta = start()
    trained(Distill(), theta, local_epochs=2)
    for batch in recorder.batches:
        said_by_teacher = batch.teachers["distill"].logits
        torch.testing.assert_close(said_by_teacher, outputs_at(theta, batch.x).logits, rtol=1e-12, atol=1e-14)


def test_no_weight_is_plain_training() -> None:
    found = trained(Distill(weight=0.0), local_epochs=2)
    torch.testing.assert_close(found.update, trained(local_epochs=2).update, rtol=1e-12, atol=1e-14)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5))
        self.head = nn.Linear(6, NUM_CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Outputs:
        features = self.body(x)
        return Outputs(self.head(features), features)


def test_a_teacher_drops_nothing_out(recorder: Recorder) -> None:
    with seeds.global_stream(3):
        network = FlatNetwork(Dropping(), torch.device("cpu"))
    data, theta = shard(), network.theta.clone()
    objective = Objective({"distill": Distill()}, shapes_of(network, data.x[:1], 4))
    client = Client(range(len(data)), lambda purpose: seeds.generator(1, purpose))
    fit_each(network, theta, data, [client], Work(ClientSettings(batch_size=4), 0.1, objective))
    network.network.eval()
    for batch, own in zip(recorder.batches, recorder.outputs, strict=True):
        expected = network.outputs_at(network.named(theta), batch.x).logits.detach()
        torch.testing.assert_close(batch.teachers["distill"].logits, expected, rtol=1e-12, atol=1e-14)
        assert (own.features == 0).any()  # the student does


class TestFiles:
    def teacher_of(self, path: Path | str) -> Tensor:
        objective = Objective({"distill": Distill(source=str(path))}, shapes())
        return teachers_of(objective, model())["distill"]

    def test_a_safetensors_file_of_the_model(self, tmp_path: Path) -> None:
        theta = start()
        save_file({k: v.contiguous() for k, v in model().named(theta).items()}, tmp_path / "t.safetensors")
        assert torch.equal(self.teacher_of(tmp_path / "t.safetensors"), theta)

    def test_the_order_in_the_file_does_not_matter(self, tmp_path: Path) -> None:
        theta = start()
        named = {k: v.contiguous() for k, v in model().named(theta).items()}
        save_file(dict(reversed(named.items())), tmp_path / "t.safetensors")
        assert torch.equal(self.teacher_of(tmp_path / "t.safetensors"), theta)

    def test_the_received_weights_need_no_file(self) -> None:
        assert teachers_of(Objective({"distill": Distill()}, shapes()), model()) == {}

    def test_a_file_that_is_missing_or_no_weights_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"none\.safetensors: cannot be read"):
            self.teacher_of(tmp_path / "none.safetensors")
        (tmp_path / "text.safetensors").write_text("no weights")
        with pytest.raises(ValueError, match=r"text\.safetensors: cannot be read"):
            self.teacher_of(tmp_path / "text.safetensors")

    def test_a_file_of_another_model_is_named(self, tmp_path: Path) -> None:
        save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
        with pytest.raises(
            ValueError,
            match=r"other\.safetensors: is not of the scenario's model: arrays must be .*unexpected \['w'\]",
        ):
            self.teacher_of(tmp_path / "other.safetensors")
