from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import resource
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_training import CONFIG, TRAINING, backwards, tiny_run
from transfuse.data.batches import PairBatch
from transfuse.errors import CheckpointError, ResumeWarning, TrainingDiverged, TrainingInterrupted
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.training.checkpoint import OPTIMIZER, WEIGHTS, own_weights
from transfuse.training.config import TrainingConfig
from transfuse.training.lock import exclusive
from transfuse.training.loop import Position, make_optimizer, train
from transfuse.training.metrics_log import MetricsLog, read_metrics
from transfuse.training.run import Run, RunState
from transfuse.training.schedule import learning_rate
from transfuse.training.seq2seq import seq2seq_loss


def drain(run: Any) -> list[Any]:
    return list(run.steps())


def test_it_learns_from_the_source(tmp_path: Path) -> None:
    losses = [step.loss for step in tiny_run(tmp_path, TRAINING.replace(epochs=25)).steps()]
    # about 5 digits at ln 10 and an end at ln 5: what a model that never looks at the source would come to
    assert sum(losses[-10:]) / 10 < (5 * math.log(10) + math.log(5)) / 6 - 0.1


def test_the_caller_s_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    drain(tiny_run(tmp_path, TRAINING.replace(epochs=1)))
    assert torch.get_rng_state().equal(before)


def test_dropout_differs_from_step_to_step_and_repeats_with_the_seed(tmp_path: Path) -> None:
    losses = [[step.loss for step in tiny_run(tmp_path / name).steps()] for name in "ab"]
    other = [step.loss for step in tiny_run(tmp_path / "c", seed=8).steps()]
    assert losses[0] == losses[1]
    assert losses[0] != other


class FixedBatches:
    """One epoch of given batches."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.data, self.batches = backwards(64, seed=3), batches

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        return self.batches

    def batch(self, rows: Sequence[int]) -> PairBatch:
        return self.data.batch(rows)


def weights_after_a_step(batches: list[list[int]], accumulate: int) -> dict[str, torch.Tensor]:
    model = Seq2SeqModel(CONFIG.replace(dropout=0.0)).initialise(0).double()
    config = TRAINING.replace(accumulate=accumulate, epochs=1)
    optimizer = make_optimizer(model, config)
    assert len(list(train(model, FixedBatches(batches), seq2seq_loss, optimizer, config, seed=0))) == 1
    return own_weights(model)


def test_eight_accumulated_batches_weigh_as_one_batch_of_eight() -> None:
    # rows of different lengths, so that a mean of means would differ
    parts = [list(range(i * 8, i * 8 + 8)) for i in range(8)]
    whole = weights_after_a_step([[row for part in parts for row in part]], accumulate=1)
    accumulated = weights_after_a_step(parts, accumulate=8)
    for name, weight in whole.items():
        torch.testing.assert_close(accumulated[name], weight, rtol=0, atol=1e-9, msg=name)


def test_a_mean_of_means_would_be_seen() -> None:
    data = backwards(64, seed=3)
    counts = {data.batch(list(range(i * 8, i * 8 + 8))).n_tokens for i in range(8)}
    assert len(counts) > 1


def test_training_can_be_taken_up_at_any_position() -> None:
    def losses(start: Position | None, model: Seq2SeqModel, optimizer: Any) -> Iterator[tuple[float, Position]]:
        for step in train(model, backwards(100, 0), seq2seq_loss, optimizer, TRAINING, seed=5, start=start):
            yield step.loss, step.position

    model = Seq2SeqModel(CONFIG).initialise(0)
    optimizer = make_optimizer(model, TRAINING)
    steps = losses(None, model, optimizer)
    position = [next(steps) for _ in range(7)][-1][1]
    again = list(losses(position, model, optimizer))
    undisturbed_model = Seq2SeqModel(CONFIG).initialise(0)
    undisturbed = list(losses(None, undisturbed_model, make_optimizer(undisturbed_model, TRAINING)))
    assert again == undisturbed[7:]


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_gradients_are_brought_to_the_longest_allowed_and_shorter_ones_left(share: float) -> None:
    """By plain gradient descent, whose step is the gradient itself."""

    def stepped(most: float) -> tuple[torch.Tensor, float]:
        model = Seq2SeqModel(CONFIG.replace(dropout=0.0)).initialise(0).double()
        before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        config = TRAINING.replace(epochs=1, clip_norm=most)
        (step,) = train(model, FixedBatches([[0, 1, 2]]), seq2seq_loss, optimizer, config, seed=0)
        after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        return (before - after) / step.learning_rate, step.gradient_norm

    gradient, norm = stepped(1e300)
    torch.testing.assert_close(gradient.norm().item(), norm)
    clipped, reported = stepped(share * norm)
    assert reported == norm
    torch.testing.assert_close(clipped, gradient * min(1.0, share), rtol=1e-5, atol=1e-12)


def test_max_steps_ends_the_run(tmp_path: Path) -> None:
    assert len(drain(tiny_run(tmp_path, TRAINING.replace(max_steps=3)))) == 3


def test_bfloat16_trains_close_to_float32(tmp_path: Path) -> None:
    losses = {
        precision: [step.loss for step in tiny_run(tmp_path / precision, TRAINING.replace(precision=precision)).steps()]
        for precision in ("float32", "bfloat16")
    }
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"][-1] == pytest.approx(losses["float32"][-1], rel=0.05)


def test_early_stopping_keeps_the_mean_of_the_best_window(tmp_path: Path) -> None:
    scores = iter([1.0, 2.0, 3.0, 0.5, 0.4, 9.0])
    run = tiny_run(tmp_path, TRAINING.replace(patience=2, average=2, keep=1), score=lambda: next(scores))
    steps = drain(run)
    assert len(steps) == 25  # the best at 15, then two worse
    results = run.finish()
    assert results["best_step"] == 15
    assert results["averaged_steps"] == [10, 15]
    saved = [run.checkpoints.weights(step) for step in (10, 15)]
    for name, weight in own_weights(run.model).items():
        torch.testing.assert_close(weight, (saved[0][name] + saved[1][name]) / 2)


def test_the_held_out_score_is_of_the_averaged_weights_and_training_goes_on_from_its_own(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def score() -> float:
        seen.append({name: weight.clone() for name, weight in own_weights(run.model).items()})
        return float(len(seen))

    run = tiny_run(tmp_path, TRAINING.replace(max_steps=10, average=2), score=score)
    drain(run)
    first, second = (run.checkpoints.weights(step) for step in (5, 10))
    for name, weight in seen[1].items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2)
        assert own_weights(run.model)[name].equal(second[name])


def test_only_what_is_needed_stays_on_disk(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, TRAINING.replace(keep=2, average=3, max_steps=40))
    drain(run)
    whole = [step for step in run.checkpoints.steps() if (run.checkpoints.path(step) / OPTIMIZER).exists()]
    assert whole == [35, 40]
    needed = set(run.state.window(35, 3)) | set(run.state.window(40, 3)) | set(run.state.window(run.state.best_step, 3))
    assert set(run.checkpoints.steps()) == needed


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, TRAINING.replace(max_steps=20))
    drain(run)
    weights = run.checkpoints.path(20) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    again = tiny_run(tmp_path, TRAINING.replace(max_steps=20))
    with pytest.warns(ResumeWarning, match=r"resuming at step 15, because .*step-00000020.*does not match its sha256"):
        assert again.resume()
    assert again.state.position.step == 15
    with pytest.raises(CheckpointError, match=r"model.safetensors: does not match its sha256"):
        run.checkpoints.weights(20)


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    drain(tiny_run(tmp_path, TRAINING.replace(max_steps=5)))
    with pytest.raises(CheckpointError, match=r"of another run, with other training.max_steps \(5 there, 6 here\); "):
        tiny_run(tmp_path, TRAINING.replace(max_steps=6)).resume()


def test_another_number_of_threads_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drain(tiny_run(tmp_path, TRAINING.replace(max_steps=5)))
    n_threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads + 1)
    other = tiny_run(tmp_path, TRAINING.replace(max_steps=5))
    message = rf"^the run had threads {n_threads}, here {n_threads + 1}: it will not come to the same weights"
    with pytest.warns(ResumeWarning, match=message):
        assert other.resume()
    state = json.loads((other.checkpoints.path(5) / "state.json").read_text())
    del state["machine"]  # of a run begun before it was written down
    assert RunState.from_dict(state).machine == {}


def damage(run: Run, step: int) -> None:
    weights = run.checkpoints.path(step) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")


def test_damage_in_what_is_averaged_goes_back_to_before_it_and_trains_on(tmp_path: Path) -> None:
    undisturbed = tiny_run(tmp_path / "quiet", TRAINING.replace(keep=4))
    drain(undisturbed)
    run = tiny_run(tmp_path / "damaged", TRAINING.replace(keep=4))
    for step in run.steps():
        if step.position.step == 20:
            break
    damage(run, 15)  # the checkpoints of 15 and 20 are averaged with it
    again = tiny_run(tmp_path / "damaged", TRAINING.replace(keep=4))
    with pytest.warns(ResumeWarning, match="resuming at step 10, because .*step-00000015"):
        assert again.resume()
    drain(again)
    for run in (undisturbed, again):
        run.finish()
    for name, weight in own_weights(undisturbed.model).items():
        assert own_weights(again.model)[name].equal(weight)


def test_where_nothing_is_whole_the_run_is_not_begun_anew(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, TRAINING.replace(max_steps=10))
    drain(run)
    for step in run.checkpoints.steps():
        damage(run, step)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be taken up: .*does not match its sha256"):
        tiny_run(tmp_path, TRAINING.replace(max_steps=10)).resume()


def test_a_folder_of_the_user_s_own_among_the_checkpoints_is_none(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, TRAINING.replace(max_steps=5))
    (run.checkpoints.folder / "step-00000003-backup").mkdir(parents=True)
    drain(run)
    assert run.checkpoints.steps() == [5]


@pytest.mark.parametrize("killed_at", [5, 10, 15, 20])
def test_a_run_out_of_patience_resumes_to_its_end(tmp_path: Path, killed_at: int) -> None:
    config = TRAINING.replace(patience=2, keep=1, average=2)

    def worse_from_step_10(run: Run) -> Any:
        return lambda: -abs(run.state.position.step - 10.0)

    results = []
    for stop in (None, killed_at):
        run = tiny_run(tmp_path / str(stop), config)
        run.score = worse_from_step_10(run)
        for step in run.steps():
            if step.position.step == (stop or -1):
                break
        again = tiny_run(tmp_path / str(stop), config)
        again.score = worse_from_step_10(again)
        assert again.resume() or stop == 5  # killed before the validation of step 5 was done
        drain(again)
        results.append((again.state.position.step, again.finish()["best_step"], own_weights(again.model)))
    (*quiet, quiet_weights), (*killed, killed_weights) = results
    assert quiet == killed == [20, 10]
    assert all(killed_weights[name].equal(weight) for name, weight in quiet_weights.items())


def test_a_checkpoint_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, saved = tiny_run(tmp_path, TRAINING.replace(max_steps=12)), []
    save = run.checkpoints.save
    monkeypatch.setattr(run.checkpoints, "save", lambda step, *parts: saved.append(step) or save(step, *parts))
    drain(run)
    assert saved == [5, 10, 12]


@pytest.mark.parametrize("last", [10, 12])
def test_a_signal_during_the_last_validation_still_counts(tmp_path: Path, last: int) -> None:
    def score() -> float:
        if run.state.position.step == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    run = tiny_run(tmp_path, TRAINING.replace(max_steps=last), score=score)
    with pytest.raises(TrainingInterrupted, match=f"interrupted after step {last}; resume from"):
        drain(run)
    assert run.checkpoints.latest() == last
    again = tiny_run(tmp_path, TRAINING.replace(max_steps=last), score=score)
    assert again.resume()
    assert drain(again) == []


@pytest.mark.parametrize("error", [TrainingInterrupted(2, 7, "x"), TrainingDiverged(7, "the loss", math.inf)])
def test_errors_pass_between_processes(error: BaseException) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_one_training_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "run"),
        pytest.raises(CheckpointError, match="run is in use by another training"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass


def test_metrics_after_a_damaged_line_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n\0\0\0\n{"step": 4}\n{"st')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    MetricsLog(path, resumed_at=4).write(step=3)
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    for alien in (b"12", b'["step"]', b'{"step": "2"}', b"{}"):
        path.write_bytes(b'{"step": 1}\n' + alien + b'\n{"step": 3}\n')
        assert [record["step"] for record in read_metrics(path)] == [1]


def test_a_metrics_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics\.jsonl: .*; checkpoints already written"):
        log.write(step=1)


def test_nothing_to_resume_starts_anew(tmp_path: Path) -> None:
    assert not tiny_run(tmp_path).resume()


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    drain(run)
    run.finish()
    again = tiny_run(tmp_path)
    again.resume()
    assert drain(again) == []
    again.finish()
    for name, weight in own_weights(run.model).items():
        assert own_weights(again.model)[name].equal(weight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_a_checkpoint(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    run = tiny_run(tmp_path)

    def send_at_step_7() -> None:
        for step in run.steps():
            if step.position.step == 7:
                os.kill(os.getpid(), number)

    with pytest.raises(TrainingInterrupted, match=r"interrupted after step 7; resume from .*step-00000007") as caught:
        send_at_step_7()
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before
    assert run.checkpoints.latest() == 7


def test_nan_stops_at_its_step_and_leaves_the_weights(tmp_path: Path) -> None:
    def loss(model: Any, batch: PairBatch, smoothing: float) -> torch.Tensor:
        total = seq2seq_loss(model, batch, smoothing)
        return total * float("nan") if calls.append(0) or len(calls) > 2 * 12 else total

    calls: list[int] = []
    run = tiny_run(tmp_path, loss=loss, score=lambda: 0.0)
    with pytest.raises(TrainingDiverged, match=r"stopped at step 13: the loss is nan") as caught:
        drain(run)
    assert caught.value.step == 13
    assert run.checkpoints.latest() == 10
    assert all(weight.isfinite().all() for weight in run.checkpoints.weights(10).values())
    assert all(weight.isfinite().all() for weight in own_weights(run.model).values())


def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, TRAINING.replace(max_steps=5))
    drain(run)
    size = (run.checkpoints.path(5) / WEIGHTS).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*step-00000006.*earlier checkpoints are intact"):
            run.checkpoints.save(6, own_weights(run.model), {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in run.checkpoints.folder.iterdir()] == ["step-00000005"]
    assert run.checkpoints.latest() == 5


def test_nothing_is_pickled(tmp_path: Path) -> None:
    drain(tiny_run(tmp_path, TRAINING.replace(max_steps=5)))
    endings = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert endings == {".safetensors", ".json", ".jsonl"}


def test_metrics_say_what_happened(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, TRAINING.replace(max_steps=10))
    steps = drain(run)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["loss"] for r in records if r["kind"] == "step"] == [step.loss for step in steps]
    assert [r["step"] for r in records if r["kind"] == "validation"] == [5, 10]
    assert all(earlier["elapsed"] <= later["elapsed"] for earlier, later in itertools.pairwise(records))


def test_metrics_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.write(step=step)
    path.write_text(path.read_text() + '{"step": 6, "lo')
    MetricsLog(path, resumed_at=3).write(step=4)
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("inverse_sqrt", 1, 0.001),
        ("inverse_sqrt", 10, 0.01),
        ("inverse_sqrt", 40, 0.005),
        ("cosine", 5, 0.005),
        ("cosine", 10, 0.01),
        ("cosine", 55, 0.005),
        ("cosine", 100, 0.0),
        ("cosine", 120, 0.0),
    ],
)
def test_learning_rate_closed_forms(schedule: Any, step: int, expected: float) -> None:
    config = TrainingConfig(learning_rate=0.01, warmup_steps=10, schedule=schedule)
    assert learning_rate(step, config, total_steps=100) == pytest.approx(expected, abs=1e-12)


def test_weight_decay_spares_biases_and_norms() -> None:
    model = Seq2SeqModel(CONFIG).initialise(0)
    decayed, spared = make_optimizer(model, TRAINING).param_groups
    assert decayed["weight_decay"] == TRAINING.weight_decay
    assert spared["weight_decay"] == 0.0
    assert {weight.dim() for weight in decayed["params"]} == {2}
    assert {weight.dim() for weight in spared["params"]} == {1}
