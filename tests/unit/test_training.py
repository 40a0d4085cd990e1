"""The training loop: schedule, files, exact resume after SIGKILL, and
what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from minilib.training import (
    CHECKPOINT,
    METRICS,
    History,
    NonFiniteLoss,
    TrainConfig,
    fit,
    learning_rate,
    make_optimizer,
)


def network() -> nn.Sequential:
    """A small network that draws random numbers (dropout) and has
    buffers (batch norm)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, 2),
        )


def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 4, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def loss(model: nn.Module, batch) -> dict[str, torch.Tensor]:
    x, y = batch
    scores = model(x)
    hits = (scores.argmax(1) == y).float().mean()
    return {"loss": nn.functional.cross_entropy(scores, y), "accuracy": hits.detach()}


def train(
    steps: int = 20, out: Path | None = None, evaluate: Callable | None = None, **how
) -> tuple[nn.Module, History]:
    model = network()
    settings = dict(warmup=3, log_every=2, checkpoint_every=5) | how
    return model, fit(
        model,
        loss,
        batches,
        TrainConfig(steps, **settings),
        out=out,
        evaluate=evaluate,
        progress=None,
    )


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


# --- The schedule and the optimiser ---------------------------------------------------


def test_learning_rate_by_hand():
    config = TrainConfig(steps=110, lr=2.0, warmup=10, final_lr=0.1)
    assert [learning_rate(step, config) for step in (0, 4, 9)] == pytest.approx(
        [0.2, 1.0, 2.0]
    )
    # the cosine starts at its top
    assert learning_rate(10, config) == pytest.approx(2.0)
    # half way
    assert learning_rate(60, config) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(110, config) == pytest.approx(0.2)
    falling = [learning_rate(step, config) for step in range(10, 110)]
    assert falling == sorted(falling, reverse=True)


def test_learning_rate_without_warmup():
    config = TrainConfig(steps=4, lr=1.0, warmup=0)
    expected = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [learning_rate(step, config) for step in range(4)] == pytest.approx(expected)


def test_matrices_decay_and_gains_biases_and_scalars_do_not():
    model = network()
    model.logit_scale = nn.Parameter(torch.tensor(1.0))
    model.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
    decayed, plain = make_optimizer(
        model, TrainConfig(1, weight_decay=0.3)
    ).param_groups
    assert {id(p) for p in decayed["params"]} == {
        id(model[0].weight),
        id(model[4].weight),
    }
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0
    assert len(plain["params"]) == 5 and any(
        p is model.logit_scale for p in plain["params"]
    )


def test_parts_learn_at_their_own_rate():
    model = network()
    config = TrainConfig(1, lr=0.01, warmup=0, lr_factors=(("0.", 0.1), ("4", 0.0)))
    rates = {
        id(p): group["lr"]
        for group in make_optimizer(model, config).param_groups
        for p in group["params"]
    }
    expected = {"0.weight": 0.001, "0.bias": 0.001, "4.weight": 0.0, "4.bias": 0.0}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(expected.get(name, 0.01)), name
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fit(model, loss, batches, config, progress=None)
    moved = {
        name for name, p in model.named_parameters() if not torch.equal(p, before[name])
    }
    assert "0.weight" in moved and "4.weight" not in moved


def test_the_logged_learning_rate_is_the_schedule():
    _, history = train(12)
    config = TrainConfig(12, warmup=3)
    steps, rates = history.column("lr")
    assert steps == [2, 4, 6, 8, 10, 12]
    assert rates == pytest.approx([learning_rate(step - 1, config) for step in steps])


def test_it_learns():
    model, _ = train(300, lr=1e-2)
    unseen = [batches(step) for step in range(1000, 1030)]
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float().mean().item() for x, y in unseen]
    assert sum(hits) / len(hits) > 0.8  # chance is one half


def test_clipping_keeps_the_step_small_and_logs_the_norm_before():
    model = network()

    def steep(model, batch):
        return {"loss": 1e4 * loss(model, batch)["loss"]}

    history = fit(model, steep, batches, TrainConfig(1, clip_norm=1.0), progress=None)
    assert history.rows[0]["gradient_norm"] > 100
    assert sum(
        float(p.grad.square().sum()) for p in model.parameters()
    ) == pytest.approx(1.0, rel=1e-3)
    assert (
        "gradient_norm"
        not in fit(
            network(), loss, batches, TrainConfig(1, clip_norm=None), progress=None
        ).rows[0]
    )


def test_average_is_the_exponential_moving_average():
    seen = []
    config = TrainConfig(6, ema=0.5, warmup=1)
    model = network()
    fit(
        model,
        loss,
        batches,
        config,
        progress=None,
        after_step=lambda m: seen.append(m[0].weight.detach().clone()),
    )
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(model[0].weight.detach(), expected)


def test_after_step_runs_after_every_step():
    def clamp(model):
        with torch.no_grad():
            model[0].weight.clamp_(-0.01, 0.01)

    model = network()
    fit(model, loss, batches, TrainConfig(3), progress=None, after_step=clamp)
    assert model[0].weight.abs().max() <= 0.01


# --- Evaluation and random state ------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.9])
def test_evaluation_is_in_eval_mode_without_gradients_and_is_undone(ema):
    modes, training = [], []

    def evaluate(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return {"score": float(len(modes))}

    def watched(model, batch):
        training.append((model.training, torch.is_grad_enabled()))
        return loss(model, batch)

    model = network()
    config = TrainConfig(10, evaluate_every=4, log_every=100, ema=ema)
    history = fit(model, watched, batches, config, evaluate=evaluate, progress=None)
    assert modes == [(False, False)] * 3
    assert training == [(True, True)] * 10
    assert history.column("score") == ([4, 8, 10], [1.0, 2.0, 3.0])
    assert not model.training and torch.is_grad_enabled()


def test_evaluations_on_the_way_judge_the_average():
    raw, judged = [], []

    def after_step(model):
        raw.append(model[0].weight.detach().clone())

    def evaluate(model):
        judged.append(model[0].weight.detach().clone())
        return {"score": 0.0}

    config = TrainConfig(10, lr=0.05, warmup=1, evaluate_every=4, ema=0.9)
    fit(
        network(), loss, batches, config,
        after_step=after_step, evaluate=evaluate, progress=None,
    )  # fmt: skip
    average, expected = raw[0], []
    for step, weight in enumerate(raw, start=1):
        average = weight if step == 1 else 0.9 * average + 0.1 * weight
        expected += [average] if step in (4, 8, 10) else []
    for mine, by_hand, step in zip(judged, expected, (4, 8, 10), strict=True):
        torch.testing.assert_close(mine, by_hand)
        assert (mine - raw[step - 1]).abs().max() > 1e-3, "it would be no test"


def test_evaluating_does_not_change_the_training():
    assert_same_weights(
        train(12)[0], train(12, evaluate=lambda m: {"x": 0.0}, evaluate_every=1)[0]
    )


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    train(5)
    assert torch.equal(before, torch.get_rng_state())


def test_the_seed_alone_decides():
    torch.manual_seed(1)
    one = train(8)[0]
    torch.manual_seed(2)
    assert_same_weights(one, train(8)[0])
    other = train(8, seed=1)[0]  # other dropout
    assert not torch.equal(one[0].weight, other[0].weight)


def test_history_column():
    history = History([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "top1": 0.5}])
    assert history.column("loss") == ([1, 2], [3.0, 2.0])
    assert history.column("top1") == ([2], [0.5])
    with pytest.raises(
        KeyError, match="no metric 'acc' was logged; there are loss, top1"
    ):
        history.column("acc")
    with pytest.raises(KeyError, match="there are none"):
        History().column("loss")


# --- Files and resume -----------------------------------------------------------------


def files(out: Path) -> list[str]:
    """What a training leaves, but for its lock."""
    return sorted(path.name for path in out.iterdir() if path.name != ".lock")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def test_metrics_on_disk_are_the_history(tmp_path):
    _, history = train(11, tmp_path)
    assert lines(tmp_path) == history.rows
    assert [row["step"] for row in history.rows] == [2, 4, 6, 8, 10, 11]
    assert {"loss", "accuracy", "lr", "seconds", "gradient_norm", "step"} == set(
        history.rows[0]
    )
    assert files(tmp_path) == [CHECKPOINT, METRICS]


def test_a_finished_training_is_not_repeated(tmp_path):
    first, history = train(10, tmp_path)
    stamp = (tmp_path / CHECKPOINT).read_bytes()

    def forbidden(step):
        assert step == 0, "only the first batch is looked at, whether it is the same"
        return batches(step)

    again = network()
    config = TrainConfig(10, warmup=3, log_every=2, checkpoint_every=5)
    assert (
        fit(again, loss, forbidden, config, out=tmp_path, progress=None).rows
        == history.rows
    )
    assert_same_weights(first, again)
    assert stamp == (tmp_path / CHECKPOINT).read_bytes() and not again.training


class Stop(Exception):
    """Stands for an interruption between two steps."""


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("stop", [0, 3, 5, 7, 10, 19])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, stop, ema):
    evaluate = lambda model: {"weight": model[0].weight.sum().item()}  # noqa: E731
    undisturbed, history = train(
        20, tmp_path / "whole", evaluate, ema=ema, evaluate_every=6
    )

    def interrupted(step):
        if step == stop:
            raise Stop
        return batches(step)

    config = TrainConfig(
        20, warmup=3, log_every=2, checkpoint_every=5, ema=ema, evaluate_every=6
    )
    with pytest.raises(Stop):
        fit(
            network(),
            loss,
            interrupted,
            config,
            out=tmp_path / "cut",
            evaluate=evaluate,
            progress=None,
        )
    resumed, after = train(20, tmp_path / "cut", evaluate, ema=ema, evaluate_every=6)
    assert_same_weights(undisturbed, resumed)
    for one, other in zip(history.rows, after.rows, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        }
    assert lines(tmp_path / "cut") == after.rows


def test_resume_starts_at_the_checkpoint_and_counts_time_on(tmp_path):
    asked = []

    def counting(step):
        asked.append(step)
        if step == 12:
            raise Stop
        return batches(step)

    config = TrainConfig(20, warmup=3, log_every=2, checkpoint_every=5)
    with pytest.raises(Stop):
        fit(network(), loss, counting, config, out=tmp_path, progress=None)
    before = lines(tmp_path)[-1]
    asked.clear()
    with pytest.raises(Stop):
        fit(network(), loss, counting, config, out=tmp_path, progress=None)
    assert asked == [0, 10, 11, 12], "the first batch says what the data are"
    assert lines(tmp_path)[-1]["step"] == before["step"] == 12
    seconds = [row["seconds"] for row in lines(tmp_path)]
    assert seconds == sorted(seconds)


def test_lines_after_the_checkpoint_and_half_lines_are_dropped(tmp_path):
    _, history = train(20, tmp_path)
    train_until(tmp_path / "cut", 12)
    with open(tmp_path / "cut" / METRICS, "a") as file:
        file.write('{"step": 14, "loss": 0.1}\n{"step": 16, "lo')
    train(20, tmp_path / "cut")
    steps = [row["step"] for row in lines(tmp_path / "cut")]
    assert steps == [row["step"] for row in history.rows]


def train_until(out: Path, stop: int) -> None:
    def interrupted(step):
        if step == stop:
            raise Stop
        return batches(step)

    config = TrainConfig(20, warmup=3, log_every=2, checkpoint_every=5)
    with pytest.raises(Stop):
        fit(network(), loss, interrupted, config, out=out, progress=None)


SCRIPT = """
    import sys, time
    sys.path[:0] = [{root!r}, {here!r}]
    import torch
    torch.set_num_threads({threads})  # sums are split over threads
    import test_training as t
    from minilib.training import TrainConfig, fit

    def batches(step):
        time.sleep({pause})
        return t.batches(step)

    config = TrainConfig(60, warmup=3, log_every=1, checkpoint_every=7, ema={ema})
    fit(t.network(), t.loss, batches, config, out={out!r}, progress=None)
"""


def start(out: Path, ema: float | None, pause: float) -> subprocess.Popen:
    here = Path(__file__).parent
    values = dict(out=str(out), ema=ema, pause=pause, threads=torch.get_num_threads())
    code = SCRIPT.format(root=str(here.parent.parent), here=str(here), **values)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])


@pytest.mark.parametrize("ema", [None, 0.95])
def test_killed_at_an_arbitrary_step_and_resumed_it_ends_bit_identical(tmp_path, ema):
    """SIGKILL twice, then resume in this process; the undisturbed run is in
    this process too."""
    config = TrainConfig(60, warmup=3, log_every=1, checkpoint_every=7, ema=ema)
    undisturbed = network()
    whole = fit(
        undisturbed, loss, batches, config, out=tmp_path / "whole", progress=None
    )

    for target in (10, 33):
        process = start(tmp_path / "killed", ema, pause=0.02)
        try:
            deadline = time.monotonic() + 600
            while (
                not (tmp_path / "killed" / METRICS).exists()
                or logged(tmp_path / "killed") < target
            ):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)

    resumed = network()
    history = fit(
        resumed, loss, batches, config, out=tmp_path / "killed", progress=None
    )
    assert_same_weights(undisturbed, resumed)
    assert [row["step"] for row in lines(tmp_path / "killed")] == list(range(1, 61))
    assert history.column("loss") == whole.column("loss")


def logged(out: Path) -> int:
    """Return the last step in the metrics, which another process may be writing."""
    whole_lines = (out / METRICS).read_text().rpartition("\n")[0].splitlines()
    return json.loads(whole_lines[-1])["step"] if whole_lines else 0


def test_killed_while_writing_a_checkpoint_the_last_one_still_loads(tmp_path):
    """The second checkpoint's bytes are cut off by SIGKILL, as a full disk or a
    power cut would."""
    code = textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = {[str(Path(__file__).parents[2]), str(Path(__file__).parent)]!r}
        import torch
        import test_training as t

        save, calls = torch.save, []

        def dying(state, path):
            calls.append(path)
            if len(calls) < 2:
                return save(state, path)
            save(state, path)
            size = os.path.getsize(path)
            os.truncate(path, size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = dying
        t.train(20, {str(tmp_path)!r})
    """)
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / (CHECKPOINT + ".tmp")).exists()  # cut short, and in nobody's way
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 5
    resumed, _ = train(20, tmp_path)
    assert_same_weights(train(20)[0], resumed)
    assert files(tmp_path) == [CHECKPOINT, METRICS]


# --- Refusals -------------------------------------------------------------------------


def test_non_finite_loss_says_where_and_what_to_do(tmp_path):
    def breaking(model, batch):
        losses = loss(model, batch)
        losses["loss"] = losses["loss"] * (math.inf if len(seen) == 7 else 1)
        seen.append(0)
        return losses

    seen: list[int] = []
    config = TrainConfig(20, warmup=3, log_every=2, checkpoint_every=5, seed=4, lr=0.01)
    with pytest.raises(NonFiniteLoss) as error:
        fit(network(), breaking, batches, config, out=tmp_path, progress=None)
    for part in (
        "loss is inf at step 7",
        "seed 4",
        f"step 5 in {tmp_path / CHECKPOINT}",
        "lower lr than 0.01",
    ):
        assert part in str(error.value)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 5


def test_non_finite_loss_without_a_folder():
    with pytest.raises(NonFiniteLoss, match="loss is nan at step 0 .*none was written"):
        fit(
            network(),
            lambda m, b: {"loss": m(b[0]).sum() * math.nan},
            batches,
            TrainConfig(3),
            progress=None,
        )


def test_a_checkpoint_is_not_overwritten_by_broken_weights(tmp_path):
    """A finite loss can have an infinite gradient; the weights are then lost, the
    checkpoint must not be."""

    def steep(model, batch):
        seen.append(0)
        value = loss(model, batch)["loss"]
        return {
            "loss": value + (0 * model[4].bias).abs().sqrt().sum()
            if len(seen) == 10
            else value
        }

    seen: list[int] = []
    config = TrainConfig(20, warmup=3, log_every=2, checkpoint_every=5)
    with pytest.raises(
        NonFiniteLoss, match="weights are not finite after step 9.*step 5 in"
    ):
        fit(network(), steep, batches, config, out=tmp_path, progress=None)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["step"] == 5 and all(
        value.isfinite().all() for value in state["model"].values()
    )


def test_another_configuration_in_the_same_folder_is_refused_by_name(tmp_path):
    train(10, tmp_path)
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(
        ValueError, match=r"last\.pt belongs to .* \(changed: lr, seed\)"
    ):
        train(10, tmp_path, lr=0.5, seed=3)
    assert (tmp_path / METRICS).read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    train(10, tmp_path)
    path = tmp_path / CHECKPOINT
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_text("not a checkpoint")
    with pytest.raises(
        ValueError,
        match="last.pt (cannot be read|is not a checkpoint of this training loop)",
    ):
        train(10, tmp_path)


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    torch.save({"step": Bomb()}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="cannot be read"):
        train(10, tmp_path)
    assert not (tmp_path / "boom").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("here is no folder")

    def forbidden(step):
        raise AssertionError("training began")

    # /proc takes no new folder, not even from root.
    for out in (tmp_path / "file", tmp_path / "file" / "run", "/proc/minilib-run"):
        with pytest.raises(
            OSError, match="cannot write to out=.*name a folder that can be written"
        ):
            fit(network(), loss, forbidden, TrainConfig(3), out=out, progress=None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_training(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write to out="):
        train(3, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(steps=0), "must be at least 1"),
        (dict(steps=5, log_every=0), "must be at least 1"),
        (dict(steps=5, checkpoint_every=0), "must be at least 1"),
        (
            dict(steps=5, precision="fp8"),
            "precision='fp8': expected 'auto', 'fp32', 'bf16' or 'fp16'",
        ),
        (dict(steps=5, accumulate=0), "must be at least 1"),
    ],
)
def test_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_bf16_trains_too():
    model, history = train(6, precision="bf16")
    assert model[0].weight.dtype == torch.float32 and math.isfinite(
        history.column("loss")[1][-1]
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_and_resume_on_cuda(tmp_path):
    def on_gpu(step):
        if step == 12 and not resumed:
            raise Stop
        return tuple(t.cuda() for t in batches(step))

    config = TrainConfig(
        20, warmup=3, log_every=2, checkpoint_every=5, precision="fp32"
    )
    resumed = []
    with pytest.raises(Stop):
        fit(network().cuda(), loss, on_gpu, config, out=tmp_path, progress=None)
    resumed.append(True)
    model, whole = network().cuda(), network().cuda()
    fit(model, loss, on_gpu, config, out=tmp_path, progress=None)
    fit(whole, loss, on_gpu, config, progress=None)
    for a, b in zip(
        model.state_dict().values(), whole.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_fp16_scales_the_loss_and_goes_on_after_a_kill(tmp_path):
    model, history = train(12, tmp_path / "whole", precision="fp16")
    assert model[0].weight.dtype == torch.float32 and all(
        map(math.isfinite, history.column("loss")[1])
    )
    state = torch.load(tmp_path / "whole" / CHECKPOINT, weights_only=True)
    assert state["scaler"]["scale"] > 1, "small gradients would be lost"

    def interrupted(step):
        if step == 8:
            raise Stop
        return batches(step)

    config = TrainConfig(
        12, warmup=3, log_every=2, checkpoint_every=5, precision="fp16"
    )
    with pytest.raises(Stop):
        fit(network(), loss, interrupted, config, out=tmp_path / "cut", progress=None)
    assert_same_weights(model, train(12, tmp_path / "cut", precision="fp16")[0])


def test_fp16_skips_a_step_whose_gradient_overflows():
    """The scale starts at 65536: a gradient of 10 is beyond what half precision holds,
    and the scale is halved."""
    seen = []

    def steep(model, batch):
        scores = model(batch[0])
        seen.append(model[4].weight.detach().clone())
        return {"loss": 100 * nn.functional.cross_entropy(scores, batch[1])}

    model = network()
    history = fit(
        model,
        steep,
        batches,
        TrainConfig(12, log_every=1, precision="fp16", clip_norm=1.0),
        progress=None,
    )
    moved = [not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
    assert moved[0] is False and moved[-1] is True
    norms = [row.get("gradient_norm") for row in history.rows]
    assert norms[0] is None and norms[-1] is not None, (
        "a norm that is not finite is not logged"
    )


def test_fp16_clips_the_gradient_itself_not_the_scaled_one():
    """The loss is scaled by 65536 at first; its gradient is clipped after that is
    undone."""

    def clipped(precision):
        model = network()
        settings = dict(warmup=1, log_every=1, clip_norm=0.1, eps=1e-3)
        config = TrainConfig(5, precision=precision, **settings)
        return model, fit(model, loss, batches, config, progress=None)

    (full, one), (half, other) = clipped("fp32"), clipped("fp16")
    norms = one.column("gradient_norm")[1]
    assert min(norms) > 0.1, "nothing would be clipped"
    assert other.column("gradient_norm")[1] == pytest.approx(norms, rel=1e-2)
    for a, b in zip(half.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(parts):
    """Without batch normalisation and dropout, means over rows are what they were."""

    def plain(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    whole, cut = plain(), plain()
    settings = dict(warmup=3, log_every=1)
    one = fit(whole, loss, batches, TrainConfig(10, **settings), progress=None)
    other = fit(
        cut, loss, batches, TrainConfig(10, accumulate=parts, **settings), progress=None
    )
    for name in ("loss", "accuracy", "gradient_norm"):
        assert one.column(name)[1] == pytest.approx(
            other.column(name)[1], rel=1e-3, abs=1e-6
        )
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
