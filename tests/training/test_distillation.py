"""The losses of a student beside its teacher, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tiny_training import CONFIG, backwards
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.training.distillation import Distillation, DistillationConfig, hidden_vectors


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("divergence", "cross_entropy"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.4)])
def test_value_and_gradient(divergence: float, cross_entropy: float, smoothing: float) -> None:
    student, teacher = (Seq2SeqModel(CONFIG).initialise(seed).double().eval() for seed in (0, 1))
    batch = backwards(17, 0).batch(range(17))
    config = DistillationConfig(divergence=divergence, cross_entropy=cross_entropy)
    found = Distillation(teacher, config)(student, batch, smoothing)
    found.backward()
    gradients = {name: weight.grad.clone() for name, weight in student.named_parameters() if weight.grad is not None}
    student.zero_grad()
    log_p, log_q = (model.output(hidden_vectors(model, batch)).log_softmax(-1) for model in (student, teacher))
    labels = batch.labels_BT[batch.real_BT]
    expected = divergence * F.kl_div(log_p, log_q.detach(), reduction="sum", log_target=True)
    expected = expected + cross_entropy * F.cross_entropy(log_p, labels, reduction="sum", label_smoothing=smoothing)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert gradients
    for name, weight in student.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-9, atol=1e-12)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    model = Seq2SeqModel(CONFIG).initialise(0).double().eval()
    loss = Distillation(model)(model, backwards(7, 0).batch(range(7)))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_the_teacher_teaches_without_dropout() -> None:
    student, teacher = (Seq2SeqModel(CONFIG).initialise(seed).double() for seed in (0, 1))
    batch, loss = backwards(7, 0).batch(range(7)), Distillation(teacher.train())
    student.eval()
    assert CONFIG.dropout > 0
    assert loss(student, batch).item() == loss(student, batch).item()
