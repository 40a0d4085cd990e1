"""What every chapter offers, and the one object that its notebook opens.

``minilib/recipes/<paper>/chapter.py`` says what differs between papers: ``Values`` and
``PROFILES``, the data (``study``), the main training (``main_training``). A
:class:`Chapter` puts them together; its ``open`` checks a notebook's parameters and
returns a :class:`Run`, through which the cells reach data, ledger and records.
"""

from __future__ import annotations

import importlib
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from minilib import opened, parameters
from minilib.claims import records, reports
from minilib.training import History, Training
from minilib.training.launch import identity, launch

V = TypeVar("V")
S = TypeVar("S")


@dataclass(frozen=True)
class Chapter(Generic[V, S]):
    """One paper's chapter; ``V`` are its values, ``S`` is its study."""

    paper: str
    """The paper's name in the ledger, for example "clip"."""
    profiles: Mapping[str, V]
    """Values per profile; a profile without values is not run."""
    study: Callable[[parameters.Parameters, V], S]
    """Make the data as the chapter uses them."""
    main_training: Callable[[parameters.Parameters, V, S], Training]
    """Make the training that the chapter examines, from its arguments alone."""
    needs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Per profile the parameters that must be given, "data" or "weights", and what
    they should name."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Per profile without values the reason."""

    def open(
        self,
        *,
        profile: str,
        seed: int,
        device: str = "auto",
        out: str | os.PathLike[str],
        data: str | os.PathLike[str] = "",
        weights: str = "",
        devices: int = 1,
    ) -> Run[V, S]:
        """Check a notebook's parameters, set the style of its figures,
        and return the run.

        Args:
            profile: "quick", "full", "photos" or "paper".
            seed: seed of the whole run.
            device: "auto", "cpu", "cuda", "cuda:<number>" or "mps".
            out: folder for results; a relative one is taken from the repository's root.
                The notebooks' default, ``runs/<paper>/quick/seed0``, stands for the
                folder of this profile and seed; where that holds a finished run of
                ``minilib reproduce``, for the folder ``...-notebook`` beside it.
            data: real data, likewise.
            weights: name or file of weights, as the chapter understands it.
            devices: processes of the main training.

        Raises:
            ValueError: a value is wrong, the profile is not run here, it needs a
                parameter that is not given, or ``out`` holds a finished run.
            FileNotFoundError: ``data`` names nothing that exists.
        """
        from minilib import plotting  # matplotlib: not for `python -m minilib.train`

        folder, note = self._folder(out, profile, seed)
        given = parameters.check(
            profile=profile,
            seed=seed,
            device=device,
            out=folder,
            data=data,
            weights=weights,
            devices=devices,
        )
        self.values(given)
        plotting.style()
        print(f"profile: {given.profile}")
        if note:
            print(note)
        return Run(**vars(given), chapter=self)

    def values(self, given: parameters.Parameters) -> V:
        """Return the values of a profile.

        Raises:
            ValueError: the profile is not run here, or it needs a parameter
                that is not given.
        """
        profile = given.profile
        if profile not in self.profiles:
            reason = self.missing.get(
                profile, f"expected one of {', '.join(self.profiles)}"
            )
            raise ValueError(f"profile={profile!r} is not run here: {reason}")
        for name, what in self.needs.get(profile, {}).items():
            if not getattr(given, name):
                raise ValueError(
                    f"profile={profile!r} needs {name}: pass {name}='...', {what}"
                )
        return self.profiles[profile]

    def _folder(
        self, out: str | os.PathLike[str], profile: str, seed: int
    ) -> tuple[str | os.PathLike[str], str]:
        """Return where a run writes, and what to say if that is not ``out``."""
        if out != self._usual_folder("quick", 0):
            if _is_finished(out):
                raise ValueError(
                    f"out={os.fspath(out)!r} holds a finished run of minilib "
                    "reproduce, which stays as it is: choose another folder"
                )
            return out, ""
        chosen, why = self._usual_folder(profile, seed), ""
        if _is_finished(chosen):
            why = f", since {chosen} holds a finished run"
            chosen += "-notebook"
        return chosen, f"results go to {chosen}{why}" if chosen != out else ""

    def _usual_folder(self, profile: str, seed: int) -> str:
        return f"runs/{self.paper}/{profile}/seed{seed}"

    def training(self, given: parameters.Parameters) -> Training:
        """Return the main training of a run; every process of
        ``minilib.train`` calls this."""
        values = self.values(given)
        return self.training_on(given, self.study(given, values))

    def training_on(self, given: parameters.Parameters, study: S) -> Training:
        """Return the main training on data that are made already; it says what it
        is of."""
        training = self.main_training(given, self.values(given), study)
        return replace(training, identity=identity(self.paper, given))


@dataclass(frozen=True)
class Run(parameters.Parameters, Generic[V, S]):
    """One run of a chapter: its parameters, values, data, and what it
    writes and reads."""

    chapter: Chapter[V, S] = field(kw_only=True)

    @property
    def values(self) -> V:
        """The values of this run's profile."""
        return self.chapter.profiles[self.profile]

    @cached_property
    def study(self) -> S:
        """The data of this run, made at first use."""
        return self.chapter.study(self, self.values)

    def train(self, title: str) -> tuple[nn.Module, History]:
        """Train what the chapter examines and return it in evaluation mode,
        with its history.

        An interrupted training goes on where it stopped, a finished one is loaded. With
        ``devices`` > 1 the processes of ``minilib.train`` do the work.

        Args:
            title: of the progress bar.
        """
        folder = self.out / "main"
        if self.devices > 1:
            launch(self.chapter.paper, self, folder)
        training = self.chapter.training_on(self, self.study)
        history = training.fit(folder, progress=title)
        return training.model.eval(), history

    def tests(self, claim: str) -> bool:
        """Return whether the ledger tests a claim at this profile; if not,
        print its reason.

        Args:
            claim: the id without the chapter, for example "C1".

        Raises:
            ValueError: there is no such claim.
        """
        test = records.find(self._name(claim)).tests[self.profile]
        if isinstance(test, str):
            reason = f"{claim} is not tested at profile {self.profile}: {test}"
            print(textwrap.fill(reason, 88))  # as wide as the book's column
        return not isinstance(test, str)

    def record(
        self,
        claim: str,
        *,
        treatment: float,
        control: float,
        n: int,
        controls: Mapping[str, float] | None = None,
        preconditions: Mapping[str, float] | None = None,
        interval: tuple[float, float] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a measurement of a claim; where the ledger does not test it at this
        profile, print why.

        Args:
            claim: the id without the chapter, for example "C1".
            treatment: see :func:`minilib.claims.record`, as for all others.
            control: the control's metric.
            n: number of test items behind the numbers.
            controls: the further controls that the ledger names for this profile.
            preconditions: the numbers that its preconditions ask for.
            interval: interval of the difference over test items.
            details: anything else worth keeping.
        """
        if self.tests(claim):
            records.record(
                self._name(claim), treatment=treatment, control=control, n=n,
                controls=controls, preconditions=preconditions, interval=interval,
                details=details, profile=self.profile, seed=self.seed, out=self.out,
            )  # fmt: skip

    def result(self, name: str, value: Any) -> None:
        """Keep a named number, list or table of this run, for pages and
        figures to quote."""
        records.record_result(
            self._name(name), value, profile=self.profile, seed=self.seed, out=self.out
        )

    def recorded(self, profile: str, name: str) -> list[Any]:
        """Return a named result of the committed records, one per seed; empty
        where there are none."""
        return [
            run.results[self._name(name)]
            for run in self._committed(profile)
            if self._name(name) in run.results
        ]

    def recorded_details(self, profile: str, claim: str) -> list[dict[str, Any]]:
        """Return the details of a claim's committed measurements, one per seed."""
        found = (
            run.measurements.get(self._name(claim)) for run in self._committed(profile)
        )
        return [
            dict(measurement.details)
            for measurement in found
            if measurement is not None
        ]

    def verdicts(self, *profiles: str) -> reports.VerdictTable:
        """Return the verdicts of this run, or, for named profiles, those of the
        committed records."""
        if profiles:
            return reports.verdicts(
                reports.results_folder(), profiles, self.chapter.paper
            )
        return reports.verdicts(self.out, [self.profile], self.chapter.paper)

    def _committed(self, profile: str) -> Sequence[records.Records]:
        """Return the committed records of a profile; pilots only where there is no
        fresh seed."""
        paper = self.chapter.paper
        path = reports.results_folder() / f"{paper}.{profile}.json"
        found = records.read_records(path) if path.is_file() else []
        fresh = records.seeds_of(paper, profile).fresh
        return [run for run in found if run.seed in fresh] or found

    def _name(self, name: str) -> str:
        return f"{self.chapter.paper}.{name}"


def _is_finished(out: object) -> bool:
    """Return whether a folder holds a finished run that is not ours to write to; what
    is not a folder's name is refused later."""
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip():
        return False
    if opened.VARIABLE in os.environ:  # minilib reproduce runs this in its own folder
        return False
    return os.path.isfile(parameters.results_path(out) / "run.json")


def chapters() -> list[str]:
    """Return the papers that have a chapter in ``minilib/recipes``, in
    the book's order."""
    folders = (Path(__file__).parents[1] / "recipes").glob("*/chapter.py")
    return sorted((path.parent.name for path in folders), key=records.chapter_number)


def find_chapter(paper: str) -> Chapter[Any, Any]:
    """Return the chapter of a paper.

    Raises:
        ValueError: there is none.
    """
    if paper not in chapters():
        raise ValueError(
            f"paper={paper!r} has no chapter: expected one of {', '.join(chapters())}"
        )
    module = importlib.import_module(f"minilib.recipes.{paper}.chapter")
    return module.CHAPTER
