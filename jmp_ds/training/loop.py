"""The training loop: windows of batches, validation, checkpoints, stopping. It knows neither models nor data formats.

Everything that decides the weights is a function of what has been consumed and of states that a checkpoint holds, so a
run that is interrupted and resumed ends with the same bits as one that is not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from jmp_ds.errors import UserError
from jmp_ds.training.checkpoints import Checkpoints, Loaded
from jmp_ds.training.ema import Ema
from jmp_ds.training.engine import Engine, LossSums, StepResult, add_sums
from jmp_ds.training.metrics_log import MetricsLog
from jmp_ds.training.outcome import Outcome, read_outcome
from jmp_ds.training.processes import explained
from jmp_ds.training.progress import RunProgress
from jmp_ds.training.randomness import preserved_random_state, random_state, seed_all, set_random_state
from jmp_ds.training.run import Loader, LoopOptions, Position, Validation, Window
from jmp_ds.training.schedules import EarlyStopping, Schedule
from jmp_ds.training.shards import Shards
from jmp_ds.training.splitting import OutOfMemory, step_in_parts
from jmp_ds.training.stopping import Deadline, StopRequest
from jmp_ds.training.watchdog import PATIENT, Watchdog

#: Bytes per second; says how long a checkpoint takes before one was written.
_SLOWEST_DISK = 100e6
_log = logging.getLogger(__name__)


class Diverged(UserError):
    """Too many steps in a row without a finite gradient."""


class Loop:
    """One run of training.

    Args:
        engine: the model on all processes.
        schedule: learning rates.
        make_loader: loader from its state (None: from the beginning).
        loss_sums: outputs, batch → sum of the loss per group.
        count_labels: batch → count per group, the same groups; called on the host, before the batch's `to(device)`.
        options: see there.
        validation: None trains without.
        early_stopping: needs validation.
        export: called in the first process with `best` or `final`, the model's state on the CPU (averaged weights
            where there are any) and what is known about it.
        describe: how large a batch is, in words.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        make_loader: Callable[[dict[str, Any] | None], Loader],
        loss_sums: LossSums,
        count_labels: Callable[[Any], Mapping[str, int]],
        options: LoopOptions,
        *,
        validation: Validation | None = None,
        early_stopping: EarlyStopping | None = None,
        export: Callable[[Literal["best", "final"], dict[str, Tensor], dict[str, Any]], None] | None = None,
        describe: Callable[[Any], str] = lambda batch: f"{batch.num_structures} structures",
    ) -> None:
        self.engine, self.schedule, self.options = engine, schedule, options
        self.position = Position()
        self.ema = Ema(engine, options.ema_decay) if options.ema_decay is not None else None
        shards = Shards(engine, self.ema)
        self.stop = StopRequest(options.stop_grace, lambda reason: self._write_outcome("stopped", reason))
        self.watchdog = Watchdog(
            options.run_dir / f"hung_process_{engine.processes.rank}.txt",
            options.hung_after,
            lambda reason: self._write_outcome("failed", reason),
        )
        self.checkpoints = Checkpoints(
            options.run_dir / "checkpoints",
            engine,
            shards,
            options.keep,
            background=options.background,
            alive=self.watchdog.still,
        )
        self._deadline = Deadline(options.wall_time, shards.size / _SLOWEST_DISK)
        self._make_loader, self._loss_sums, self._count_labels = make_loader, loss_sums, count_labels
        self._validation, self._early_stopping, self._export = validation, early_stopping, export
        self._processes = engine.processes
        self._describe = describe
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        self._save_due = False

    # --------------------------------------------------------------------------------------------------- run

    def run(self) -> Outcome:
        """Train from the newest checkpoint, or the beginning, to the end, a stop request or a failure; collective.

        The outcome is also in `outcome.json`.

        Raises:
            UserError: no usable checkpoint, or the training diverged.
            Exception: whatever goes wrong below; the outcome file then says `failed`.
        """
        try:
            with self.stop.listening(), self.watchdog.watching():
                outcome = self._run()
        except BaseException as error:
            self._write_outcome("failed", explained(error))
            raise
        if self._processes.first:
            outcome.write(self.options.run_dir)
        return outcome

    def _run(self) -> Outcome:
        """The run inside its guards."""
        options, first = self.options, self._processes.first
        if first:
            Outcome("running").write(options.run_dir)
        seed_all(options.seed, self._processes.rank)
        loaded = self.checkpoints.load_newest() if options.resume else None
        if loaded is not None:
            self._restore(loaded)
        log = MetricsLog(options.run_dir, self.position.step, enabled=first)
        try:
            with RunProgress(options.length, self._done(), enabled=first) as progress:
                if loaded is not None:
                    progress.say(f"resumed from {loaded.path}")
                return self._train(progress, log)
        finally:
            log.close()

    def _train(self, progress: RunProgress, log: MetricsLog) -> Outcome:
        """All windows, and what is due at the boundaries between them."""
        loader = self._make_loader(self.position.loader)
        windows = iter(loader)
        while True:
            if self.position.validation_due:
                stopped = self._validate(progress, log)
                if stopped:
                    return self._stopped(stopped)
            over = bool(self.position.ended) or self._done() >= self.options.length
            if over or self._save_due:
                self._save()
            if over:
                self._commit()
                break
            self.position.loader = loader.state()
            before = self.position.consumed
            window = next(windows, None)
            if window is None:
                self.position.ended = "the data are used up"
                self.position.validation_due = True
                continue
            stopped = self._window(window, progress, log)
            if stopped:
                return self._stopped(stopped)
            self.position.loader = loader.state()
            last = self._done() >= self.options.length
            self.position.validation_due = last or self._crossed(before, self.options.validate_every)
            self._save_due = self._crossed(before, self.options.checkpoint_every)
        self._export_weights("final", {})
        reason = self.position.ended or "end of the run"
        return Outcome("finished", reason, self.position.step, self.position.consumed)

    def _stopped(self, reason: str) -> Outcome:
        """Leave a checkpoint of this boundary."""
        self._save()
        self._commit()
        return Outcome("stopped", reason, self.position.step, self.position.consumed)

    def _agreed_to_stop(self, asked: float) -> str | None:
        """The reason to stop, where `asked` of the processes were asked to."""
        if not asked:
            return None
        self.stop.reached_boundary()
        return next(reason for reason in self._processes.gather(self.stop.reason) if reason)

    def _window(self, window: Window, progress: RunProgress, log: MetricsLog) -> str | None:
        """One step; or, before it, the reason to stop that all processes agreed on."""
        counts: dict[str, float] = {}
        for batch in window.batches:
            for group, count in self._count_labels(batch).items():
                counts[group] = counts.get(group, 0.0) + count
        groups = sorted(counts)
        self._look_at_the_clock()
        mine = [float(self.stop.requested), float(self.checkpoints.ready), *(counts[g] for g in groups)]
        asked, ready, *totals = self._processes.sum(mine)
        if ready == self._processes.world:
            self._commit()
        stopped = self._agreed_to_stop(asked)
        if stopped:
            return stopped
        self.position.primary = None
        total_counts = dict(zip(groups, totals, strict=True))
        step = window.structures if self._by_structures else 1
        rates = self.schedule.rates(self._schedule_position(), step / self.options.schedule_unit)
        self.engine.set_rates(rates)
        began = time.monotonic()
        result = self._step(window, total_counts, progress, log)
        self.position.step += 1
        self.position.consumed += window.structures
        self._after_step(result, window, total_counts, log, progress)
        if self.position.step % self.options.log_every == 0:
            self._log_training(result, rates, log, progress)
        note = f"epoch {self.position.consumed / self.options.epoch:.2f}  lr {max(rates):.3g}"
        progress.advance(self._done(), window.structures, note)
        self._deadline.note_step(time.monotonic() - began)
        self.watchdog.beat()
        return None

    def _step(self, window: Window, counts: Mapping[str, float], progress: RunProgress, log: MetricsLog) -> StepResult:
        """The step itself, and what is done where a batch does not fit into memory."""
        device = self._processes.device
        try:
            # graphs left to the device are built before the step, when the device has no other work to be waited for
            batches = [batch.to(device) for batch in window.batches]
            if self.options.on_out_of_memory == "stop":
                return self.engine.step(batches, counts, self._loss_sums)

            def tell(number: int, parts: int) -> None:
                text = f"out of memory: {self._describe(window.batches[number])} are computed in {parts} parts"
                log.write("event", self.position.step + 1, {"split": text})
                progress.say(f"step {self.position.step + 1}: {text}")

            def divide(number: int, parts: int) -> list[Any]:
                return [part.to(device) for part in window.divided(number, parts)]

            return step_in_parts(self.engine, batches, counts, self._loss_sums, divide, tell)
        except torch.OutOfMemoryError as error:
            sizes = "; ".join(self._describe(batch) for batch in window.batches)
            raise OutOfMemory(
                f"process {self._processes.rank} ran out of memory in step {self.position.step + 1} ({sizes}). "
                "Lower sampling.batch (raise sampling.accumulation to make up for it), set model.recompute: on, or "
                f"train.on_out_of_memory: split. {error}"
            ) from error

    # ---------------------------------------------------------------------------------------- after a window

    def _after_step(
        self,
        result: StepResult,
        window: Window,
        counts: Mapping[str, float],
        log: MetricsLog,
        progress: RunProgress,
    ) -> None:
        """Average and account for a good step; report a bad one, and give up after too many."""
        if not result.skipped:
            self.position.bad_steps = 0
            if self.ema is not None:
                self.ema.update()
            add_sums(self._sums, result.sums)
            for group in result.sums:
                self._counts[group] = self._counts.get(group, 0.0) + counts[group]
            return
        self.position.bad_steps += 1
        bad = [
            i for b, loss in zip(window.batches, result.losses, strict=True) if not torch.isfinite(loss) for i in b.ids
        ]
        everywhere = [i for part in self._processes.gather(bad) for i in part]
        what = "loss" if everywhere else "gradient"
        ids = everywhere or [
            i for part in self._processes.gather([i for b in window.batches for i in b.ids]) for i in part
        ]
        log.write("event", self.position.step, {"skipped": f"{what} is not finite", "ids": ids})
        shown = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
        progress.say(f"step {self.position.step} skipped: the {what} is not finite; structures: {shown}")
        if self.position.bad_steps >= self.options.max_bad_steps:
            raise Diverged(
                f"{self.position.bad_steps} steps in a row had a {what} that is not finite (last structures: {shown}); "
                "look at these structures with `jmp-ds data check`, or lower the learning rate"
            )

    def _log_training(self, result: StepResult, rates: Sequence[float], log: MetricsLog, progress: RunProgress) -> None:
        """Means of the loss since the last line, over all processes."""
        groups = sorted(self._sums)
        totals = self._processes.sum([float(self._sums[g]) for g in groups])
        means = {f"loss/{g}": t / self._counts[g] for g, t in zip(groups, totals, strict=True) if self._counts[g]}
        self._sums, self._counts = {}, {}
        values = {"loss": sum(means.values()), **means, "grad_norm": result.grad_norm, "lr": max(rates)}
        values |= {"epoch": self.position.consumed / self.options.epoch, "structures_per_second": progress.rate}
        log.write("train", self.position.step, values)

    def _validate(self, progress: RunProgress, log: MetricsLog) -> str | None:
        """Metrics with averaged weights, and what follows from them for learning rate, best weights and the end.

        Returns:
            The reason to stop, if that was asked for meanwhile; the validation is then made anew at the resumption.
        """
        if self._validation is None:
            self.position.validation_due = False
            return None
        metrics = self._validation.metrics()
        with preserved_random_state(), self._validated_weights():
            for batch in self._validation.batches():
                began = time.monotonic()
                self.watchdog.beat()
                self._look_at_the_clock()
                (asked,) = self._processes.sum([float(self.stop.requested)])
                stopped = self._agreed_to_stop(asked)
                if stopped:
                    return stopped
                moved = batch.to(self._processes.device)
                metrics.update(self.engine.evaluate(moved), moved)
                self._deadline.note_step(time.monotonic() - began)
        self.position.validation_due = False
        totals = self._processes.sum([float(v) for v in metrics.state.flatten().tolist()])
        metrics.state.copy_(torch.tensor(totals, dtype=metrics.state.dtype).view_as(metrics.state))
        values = metrics.compute()
        primary = float(self._validation.primary(values))
        self.position.primary = primary
        weights = "averaged" if self.ema is not None else "current"
        position = self._schedule_position()
        reduced = self.schedule.validated(primary, position, 1e-9)
        epoch = self.position.consumed / self.options.epoch
        log.write("validate", self.position.step, {**values, "primary": primary, "weights": weights, "epoch": epoch})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        progress.say(f"validation at epoch {epoch:.2f} ({weights} weights): {shown}")
        if reduced:
            progress.say("no improvement: learning rate reduced")
        if self.position.best is None or primary < self.position.best:
            self.position.best = primary
            self._export_weights("best", values)
            self._save_due = self._save_due or self.options.keep_best
        if self._early_stopping is not None:
            reason = self._early_stopping.validated(primary, self.schedule.rates(position, 1e-9))
            self.position.ended = self.position.ended or reason or ""
        return None

    # --------------------------------------------------------------------------------------------- positions

    @property
    def _by_structures(self) -> bool:
        """Whether the run is measured in structures."""
        return self.options.measure == "structures"

    def _done(self) -> float:
        """How much of `length` is done."""
        return float(self.position.consumed if self._by_structures else self.position.step)

    def _schedule_position(self) -> float:
        """Position in the schedule's unit."""
        return self._done() / self.options.schedule_unit

    def _crossed(self, before: int, every: float) -> bool:
        """Whether the last window passed a multiple of `every` structures."""
        return math.floor(self.position.consumed / every) > math.floor(before / every)

    # ------------------------------------------------------------------------------------------------ states

    def _validated_weights(self) -> AbstractContextManager[None]:
        """The model has its averaged weights inside, where there are any."""
        return self.ema.in_model() if self.ema is not None else nullcontext()

    def _model_state(self) -> dict[str, Tensor]:
        """The model's state with the weights that are validated, on the CPU of the first process; collective."""
        return self.engine.model_state(self.ema.shards if self.ema is not None else None)

    def _description(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What is known about exported weights."""
        return {
            "step": self.position.step,
            "consumed": self.position.consumed,
            "epoch": self.position.consumed / self.options.epoch,
            "weights": "averaged" if self.ema is not None else "current",
            "metrics": dict(metrics),
        }

    def _export_weights(self, kind: Literal["best", "final"], metrics: Mapping[str, float]) -> None:
        """Hand the validated weights to whoever wants them; collective."""
        if self._export is None:
            return
        self.watchdog.beat(PATIENT)
        state = self._model_state()
        if self._processes.first:
            self._export(kind, state, self._description(metrics))
        self.watchdog.beat(PATIENT)  # the others wait for the first

    def _save(self) -> None:
        """A checkpoint at this boundary; in the background it is committed later."""
        shared = {
            "position": vars(self.position).copy(),
            "schedule": self.schedule.state(),
            "early_stopping": self._early_stopping.state() if self._early_stopping else None,
            "threads": self._processes.threads,
            "averaged": self.ema is not None,
        }
        with self._saving():
            self.checkpoints.save(self.position.step, shared, {"random": random_state()}, self.position.primary)
        self._save_due = False

    def _commit(self) -> None:
        """Make a checkpoint count that was written in the background, waiting for it if need be."""
        with self._saving():
            self.checkpoints.finish()

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """What is done for a checkpoint: neither a stop request nor the watchdog cuts it short; the time is noted."""
        began = time.monotonic()
        self.watchdog.beat(PATIENT)
        with self.stop.saving():
            yield
        self._deadline.note_save(max(time.monotonic() - began, self.checkpoints.write_seconds))
        self.watchdog.beat(PATIENT)

    def _look_at_the_clock(self) -> None:
        """Ask to stop when the time left is what a checkpoint may need."""
        if self._deadline.reached:
            self.stop.ask("the wall time is nearly over")

    def _restore(self, loaded: Loaded) -> None:
        """Continue where a checkpoint was written."""
        self.position = Position(**loaded.shared["position"])
        if loaded.shared["threads"] != self._processes.threads:
            _log.warning(
                "%s was written with %d threads per process, now there are %d: results may differ in the last bits",
                loaded.path,
                loaded.shared["threads"],
                self._processes.threads,
            )
        self.schedule.load_state(loaded.shared["schedule"])
        if self._early_stopping is not None and loaded.shared["early_stopping"] is not None:
            self._early_stopping.load_state(loaded.shared["early_stopping"])
        if (self.ema is not None) != loaded.shared["averaged"]:
            raise UserError(f"{loaded.path}: train.ema was switched on or off since; resume with the same setting")
        if loaded.own is not None:
            set_random_state(loaded.own["random"])
        else:
            seed_all(self.options.seed, self._processes.rank, self.position.step)
        now = (self._processes.world, self.engine.stage)
        if loaded.written_by != now and self._processes.first:
            _log.warning(
                "%s was written by %d processes at ZeRO stage %d, now there are %d at stage %d: weights, moments and the "
                "order of structures go on, sums are rounded in another order%s",
                loaded.path,
                *loaded.written_by,
                *now,
                "" if loaded.own is not None else ", and dropout draws other numbers",
            )

    def _write_outcome(self, status: Literal["stopped", "failed"], reason: str) -> None:
        """Record an end that did not come from `_run`; of several processes' failures the first is the cause."""
        known = read_outcome(self.options.run_dir)
        if status == "failed" and known is not None and known.status == "failed":
            return
        try:
            position, cut_off = self.position, status == "stopped"
            Outcome(status, reason, position.step, position.consumed, cut_off).write(self.options.run_dir)
        except OSError as error:  # a full disk must not hide what went wrong
            _log.error("the run %s (%s); this could not be written to the run folder: %s", status, reason, error)
