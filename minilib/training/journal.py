"""The files of one training run: metrics as JSON lines and the last checkpoint,
never half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minilib.files import NotTheSame, differences, only_writer
from minilib.training.identity import Identity

CHECKPOINT = "last.pt"
METRICS = "metrics.jsonl"
_PARTS = {"step", "seconds", "config", "model", "optimizer", "rng"}


class Journal:
    """What a training run writes, and resumes from; only the main process writes.

    Args:
        out: the folder; None = nothing is kept on disk.
        config: the run's values; a checkpoint with other values is refused.
        main: whether this process writes.
        identity: what else the run is of; a checkpoint of another is refused.

    Raises:
        OSError: ``out`` cannot be written.
    """

    def __init__(
        self,
        out: Path | str | None,
        config: Mapping[str, Any],
        main: bool = True,
        identity: Identity = Identity(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.out = None if out is None else Path(out)
        self.config = json.loads(json.dumps(config))
        self.main = main
        self.identity = identity
        self.rows: list[dict[str, float]] = []
        self.last_checkpoint = "none was written"
        if self.out is not None and main:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                _probe(self.out)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"cannot write to out={str(out)!r}: {error.strerror}; name a "
                    "folder that can be written",
                ) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other trainings out of the folder.

        Raises:
            FolderInUse: another process trains there.
        """
        if self.out is None or not self.main:
            yield
            return
        with only_writer(self.out, "training"):
            yield

    def restore(
        self, load: Callable[[dict[str, Any]], None], device: torch.device
    ) -> tuple[int, float]:
        """Pass the last checkpoint, if there is one, to ``load``; return the steps and
        seconds done so far.

        Raises:
            NotTheSame: the checkpoint cannot be read, or belongs to another training:
                the message names in what.
        """
        if self.out is None or not (self.out / CHECKPOINT).exists():
            if self.out is not None and self.main:
                (self.out / METRICS).unlink(missing_ok=True)
            return 0, 0.0
        path = self.out / CHECKPOINT
        try:
            saved = torch.load(path, map_location=device, weights_only=True)
            of_this_kind = saved.keys() >= _PARTS
        except Exception as error:
            # what torch.load raises depends on where the file is damaged
            raise NotTheSame(
                f"{path} cannot be read ({error}); delete it to start again"
            ) from error
        if not of_this_kind:
            raise NotTheSame(
                f"{path} is not a checkpoint of this training loop; choose another "
                "folder"
            )
        if "identity" not in saved:
            raise NotTheSame(
                f"{path} does not say which data and model it is of (an older version "
                "wrote it): choose another folder, or delete this file to start again"
            )
        changed = set(differences(saved["config"], self.config))
        changed |= set(Identity(**saved["identity"]).differing(self.identity))
        if changed:
            raise NotTheSame(
                f"{path} belongs to another training (changed: "
                f"{', '.join(sorted(changed))}); choose another folder, or delete "
                "this file to start again"
            )
        load(saved)
        self.last_checkpoint = f"step {saved['step']} in {path}"
        if self.main:
            lines = (
                (self.out / METRICS).read_text().splitlines()
                if (self.out / METRICS).exists()
                else []
            )
            # A killed run can leave lines after the checkpoint, the last one cut short:
            # those steps run again.
            self.rows = [
                row
                for row in map(_parse, lines)
                if row is not None and row["step"] <= saved["step"]
            ]
            _write(
                self.out / METRICS,
                "".join(json.dumps(row) + "\n" for row in self.rows).encode(),
            )
        return saved["step"], saved["seconds"]

    def log(self, row: dict[str, float]) -> None:
        """Keep one line of metrics, in memory and on disk."""
        if not self.main:
            return
        self.rows.append(row)
        if self.out is not None:
            with open(self.out / METRICS, "a") as file:
                file.write(json.dumps(row) + "\n")

    def save(
        self,
        step: int,
        seconds: float,
        state: dict[str, Any],
        rng: list[dict[str, Any]],
    ) -> None:
        """Write everything that resuming needs, under a temporary name first.

        Args:
            step: steps done.
            seconds: time spent in them.
            state: state dicts by name, ``model`` and ``optimizer`` among them.
            rng: the random state of every process.
        """
        if self.out is None:
            return
        if self.main:
            everything = {
                "step": step,
                "seconds": seconds,
                "config": self.config,
                "identity": self.identity.to_data(),
                "rng": rng,
                **state,
            }
            temporary = self.out / (CHECKPOINT + ".tmp")
            torch.save(everything, temporary)
            os.replace(temporary, self.out / CHECKPOINT)
        self.last_checkpoint = f"step {step} in {self.out / CHECKPOINT}"


def _probe(folder: Path) -> None:
    """Raise OSError if the folder takes no new file."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def _parse(line: str) -> dict[str, float] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
