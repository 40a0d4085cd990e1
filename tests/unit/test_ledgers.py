"""What every paper's ledger must keep, beyond its schema."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from minilib import claims
from minilib.parameters import PROFILES

CLAIMS = [claim for paper in claims.papers() for claim in claims.load(paper).values()]


def every_test() -> Iterator[tuple[str, str, claims.Claim, claims.Test]]:
    for claim in CLAIMS:
        for profile, test in claim.tests.items():
            if isinstance(test, claims.Test):
                yield claim.id, profile, claim, test


def test_every_claim_covers_every_profile() -> None:
    assert {"clip", "lseg", "denseclip", "countx", "vlcounter"} <= set(claims.papers())
    for claim in CLAIMS:
        assert set(claim.tests) == set(PROFILES)


def test_the_seeds_suffice_for_the_spread_of_the_pilots() -> None:
    """Where the ledger says how much the difference varies from seed to seed, a true
    zero must be able to end as "no difference": else the test's own text says that this
    would take more seeds."""
    short = []
    for name, profile, _, test in every_test():
        if test.spread is None or test.exact or profile == "quick":
            continue
        needed = claims.seeds_needed(test.spread.sd, test.effect)
        enough = needed is not None and needed <= len(test.seeds.fresh)
        if not enough and not re.search(r"more\b.*\bseeds", f"{test.how} {test.why}"):
            short.append(f"{name}, {profile}: it takes {needed or 'over 10'} seeds")
    assert not short, short


def test_a_smallest_effect_of_zero_is_for_further_controls_only() -> None:
    for name, profile, _, test in every_test():
        assert test.effect > 0, (name, profile)


@pytest.mark.parametrize("paper", claims.papers())
def test_claims_without_a_paper_of_their_own_are_not_the_papers(paper: str) -> None:
    for claim in claims.load(paper).values():
        if claim.where.startswith("not in the paper"):
            assert claim.origin != "paper", claim.id
        if claim.comparable:
            assert claim.differences, claim.id
