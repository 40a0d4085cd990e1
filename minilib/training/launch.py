"""Train a chapter's model on several processes, GPUs or hosts, with Hugging
Face accelerate.

``accelerate launch --multi_gpu --num_processes 8 -m minilib.train clip --profile full
--seed 0 --out runs/train/clip`` runs the very training that the chapter's notebook runs
on one device, into the same files: ``last.pt`` and ``metrics.jsonl``. Without
``accelerate launch`` it is one process. Stopped or killed, the same command goes on
from the last checkpoint, with another number of processes too.

**What is trained.** The main training of the paper's chapter
(:meth:`minilib.claims.chapter.Chapter.training`). It must depend on its arguments
alone, since every process makes it. A batch is the *joined* batch: more processes share
it, they do not enlarge it.

**From a notebook.** A kernel is one process. :func:`launch` starts the processes and
waits for them; the same ``Training.fit(out)`` that would have trained then finds the
finished checkpoint and loads it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from minilib import parameters
from minilib.files import (
    FolderInUse,
    NotTheSame,
    from_shell,
    only_writer,
    path_digest,
)
from minilib.parameters import (
    PROFILES,
    Parameters,
    from_repository,
    repository,
    writable_folder,
)
from minilib.training.journal import METRICS
from minilib.training.loop import History, NonFiniteLoss, Training
from minilib.training.parallel import part_of

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG = "train.log"
OWN = ("data", "weights")
"""The notebook's parameters, beside profile and seed, that bear on
its main training."""
_OWNER = "MINILIB_OWNER"  # process whose end ends the training that it launched


def processes(
    cpu: bool = False, tracker: str | None = None, out: Path | None = None
) -> Accelerator:
    """Return the processes that ``accelerate launch`` or ``torchrun`` started,
    or this one alone.

    Args:
        cpu: train on CPUs even where there are GPUs.
        tracker: ``tensorboard`` writes curves under ``out``; None = metrics.jsonl only.
        out: folder for the tracker.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    return Accelerator(
        cpu=cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        # training.fit chooses the precision, on one process as on many
        mixed_precision="no",
        log_with=tracker,
        project_dir=out,
        kwargs_handlers=[
            # Towers with a part that one loss does not use are common here.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # An evaluation may take longer than the default of ten minutes.
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )


def launch(
    paper: str,
    run: Parameters,
    out: str | os.PathLike[str],
    options: Sequence[str] = (),
) -> None:
    """Train on ``run.devices`` processes of this machine, wait, and leave checkpoint
    and metrics in ``out``.

    A finished training is left as it is, an interrupted one goes on. The processes end
    with the calling one.

    Args:
        paper: for example "clip".
        run: the notebook's parameters; ``devices`` is the number of processes, two or
            more, one per GPU (on CPU any number).
        out: folder of the training (not of the whole run).
        options: further options of ``python -m minilib.train``.

    Raises:
        ValueError: fewer than two ``devices``, or fewer GPUs than that.
        FolderInUse: another process trains in ``out``.
        RuntimeError: the training failed; the message ends with the end of its log.
    """
    devices, device = run.devices, run.device
    on_cpu = device.type == "cpu" or not torch.cuda.is_available()
    if devices < 2:
        raise ValueError(
            f"devices={devices}: expected two or more; one device trains in the "
            "calling process"
        )
    if not on_cpu and devices > torch.cuda.device_count():
        raise ValueError(
            f"devices={devices}: this machine has {torch.cuda.device_count()} CUDA "
            "device(s)"
        )
    folder = writable_folder(out)
    with only_writer(folder, "training"):
        pass  # before the log of one that is at work would be overwritten
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += [
        "--num_processes",
        str(devices),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    command += [
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
        "minilib.train",
        paper,
    ]
    command += [
        "--profile",
        run.profile,
        "--seed",
        str(run.seed),
        "--out",
        str(folder),
        *options,
    ]
    command += ["--cpu"] if on_cpu else []
    for name in OWN:
        if value := getattr(run, name):
            named = from_repository(value)  # a path as the notebook means it, or a name
            command += ["-p", f"{name}={named if named.exists() else value}"]
    environment = os.environ | {_OWNER: str(os.getpid())}
    environment.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices))
    )
    root = repository()
    if root is not None:  # the processes import this very package, wherever they start
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(root), os.environ.get("PYTHONPATH")])
        )
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    with open(folder / LOG, "w", encoding="utf-8") as log:
        running = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _watch(running, folder, f"{paper} on {devices} processes")
        except BaseException:
            running.terminate()
            running.wait()
            raise
    if running.returncode:
        tail = (folder / LOG).read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(
            f"training {paper} on {devices} processes failed; {LOG} ends:\n{tail}"
        )


def _watch(running: subprocess.Popen[bytes], folder: Path, title: str) -> None:
    """Show the steps that the processes have logged until they end."""
    with tqdm(desc=title, unit=" steps", leave=False) as bar:
        while running.poll() is None:
            time.sleep(0.5)
            path = folder / METRICS
            lines = (
                path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
                if path.exists()
                else []
            )
            if lines:
                row = json.loads(lines[-1])
                bar.update(int(row["step"]) - bar.n)
                bar.set_postfix({"loss": f"{row.get('loss', float('nan')):.3f}"})


def identity(paper: str, run: Parameters) -> dict[str, str]:
    """Return what the main training of a chapter is of, as far as its parameters say
    it; for :class:`minilib.training.Training`."""
    found = {"paper": paper, "profile": run.profile, "seed": str(run.seed)}
    if run.data is not None:
        found["data"] = path_digest(run.data)
    if run.weights:
        path = from_repository(run.weights)
        found["weights"] = path_digest(path) if path.exists() else run.weights
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return the exit status: 0 well, 1 the training failed, 2 wrong use, 3
    another process trains in the folder. Unforeseen failures are raised."""
    options = _parser().parse_args(arguments)
    end_with_the_launcher()
    from minilib.claims.chapter import (
        find_chapter,  # the chapters themselves call launch()
    )

    try:
        chapter = find_chapter(options.paper)
        run = parameters.check(
            profile=options.profile,
            seed=options.seed,
            # as the shell means it; a notebook's own paths start at the repository
            out=options.out.expanduser().absolute(),
            **from_shell(dict(options.parameters)),
        )
        accelerator = processes(options.cpu, options.tracker, run.out)
        training = chapter.training(replace(run, device=accelerator.device))
        changes = {
            name: value
            for name in ("steps", "precision", "accumulate")
            if (value := getattr(options, name)) is not None
        }
        config = replace(training.config, **changes)
        training = replace(training, config=config)
        parts = accelerator.num_processes * config.accumulate
        part_of(training.batches, 0, 0, parts)  # does a batch have so many parts?
    except (ValueError, OSError) as error:
        return _refused(error, 2)
    if accelerator.is_main_process:
        print(describe(training, accelerator), flush=True)
    if options.tracker:
        accelerator.init_trackers("curves")
    try:
        history = training.fit(
            run.out,
            progress=options.paper if sys.stderr.isatty() else None,
            accelerator=accelerator,
        )
    except FolderInUse as error:
        return _refused(error, 3)
    except NotTheSame as error:
        return _refused(error, 2)
    except (NonFiniteLoss, OSError) as error:
        return _refused(error, 1)
    accelerator.end_training()
    if accelerator.is_main_process:
        print(_last(history), flush=True)
    return 0


def _refused(error: Exception, status: int) -> int:
    """Print an error in a line and return the exit status."""
    print(f"minilib.train: {error}", file=sys.stderr, flush=True)
    return status


def describe(training: Training, accelerator: Accelerator) -> str:
    """Return what is about to run, in words: processes, precision, and what batch
    normalisation does."""
    count, kind = accelerator.num_processes, accelerator.device.type
    text = (
        f"{count} process{'es' * (count > 1)} on {kind}, {training.config.steps} "
        "steps, each batch in "
    )
    text += (
        f"{count * training.config.accumulate} part(s), precision "
        f"{training.config.precision}"
    )
    if count > 1 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for module in training.model.modules()
    ):
        over = (
            "all processes (SyncBatchNorm)"
            if kind == "cuda"
            else "each process's own rows"
        )
        text += f"; batch normalisation over {over}"
    return text


def _last(history: History) -> str:
    numbers = history.rows[-1] if history.rows else {}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def end_with_the_launcher() -> None:
    """End this process when the one that launched it has gone, even if that was killed.

    Otherwise a training that nobody waits for would go on writing into a folder where
    the next one has begun.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    parent, owner = os.getppid(), int(os.environ.get(_OWNER, 0))

    def watch() -> None:
        while os.getppid() == parent and (not owner or _alive(owner)):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minilib.train", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("paper", help="for example clip")
    parser.add_argument(
        "--profile", default="full", choices=PROFILES, help="default: full"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for checkpoint and metrics, seen by all hosts; a relative one "
        "starts at the working directory",
    )
    parser.add_argument(
        "-p",
        dest="parameters",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=VALUE",
        help=(
            f"a parameter of the notebook, {' or '.join(OWN)}, for example -p "
            "data=FOLDER; repeatable"
        ),
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="fewer or more steps than the profile's, to try something",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="default: the recipe's",
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        help="parts that each process works through one after another",
    )
    parser.add_argument(
        "--tracker", choices=("tensorboard",), help="curves beside metrics.jsonl"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="train on CPUs even where there are GPUs"
    )
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name.strip() not in OWN:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected {' or '.join(f'{own}=VALUE' for own in OWN)}"
        )
    return name.strip(), value
