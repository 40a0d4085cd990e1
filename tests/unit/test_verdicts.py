"""The rule of a verdict, on hand-made records: every kind, and cases in which a weaker
rule gave another verdict than the numbers allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from minilib import claims
from minilib.claims import judging, records
from minilib.claims.records import Comparison, Precondition

TOY = Path(__file__).with_name("toy_ledger.yaml").read_text("utf-8")
TOYS = records.parse(TOY)
FRESH = (10, 11, 12, 13, 14)
AROUND = np.array(
    [-0.01, -0.005, 0.0, 0.005, 0.01]
)  # half-width of the interval: 0.0098
LEARNED = {"share of the mean's error": 0.5, "accuracy of the text tower": 0.9}


def measure(
    claim: claims.Claim,
    treatment: Sequence[float],
    control: Sequence[float] | float = 0.0,
    seeds: Sequence[int] = FRESH,
    profile: str = "full",
    preconditions: Mapping[str, Sequence[float] | float] | None = None,
    **controls: Sequence[float] | float,
) -> list[claims.Measurement]:
    """One measurement a seed; a single number stands for all of them."""
    test = claim.test(profile)

    def at(values: Sequence[float] | float, k: int) -> float:
        return float(np.broadcast_to(values, len(treatment))[k])

    return [
        claims.Measurement(
            claim.id,
            profile,
            seed,
            treatment=float(treatment[k]),
            control=at(control, k),
            n=100,
            controls={name.replace("_", " "): at(v, k) for name, v in controls.items()},
            preconditions={name: at(v, k) for name, v in (preconditions or {}).items()},
            test=test.digest,
        )
        for k, seed in enumerate(seeds[: len(treatment)])
    ]


def asked(claim: str, origin: str | None = None, **test: Any) -> claims.Claim:
    """A claim of the toy ledger, with another test at full."""
    found = TOYS[claim]
    tests = {**found.tests, "full": replace(found.test("full"), **test)}
    return replace(found, tests=tests, origin=origin or found.origin)


def gain(differences: Sequence[float], **more: Any) -> claims.Verdict:
    """The verdict on "treatment greater by more than 0.05", the control beaten."""
    more = {"shuffled_text": -1.0, **more}
    return claims.judge(
        TOYS["toy.gain"], measure(TOYS["toy.gain"], differences, **more)
    )


def error(differences: Sequence[float], **more: Any) -> claims.Verdict:
    """The verdict on "treatment smaller by more than 0.5", preconditions met."""
    claim = TOYS["toy.error"]
    more = {"preconditions": LEARNED, **more}
    return claims.judge(claim, measure(claim, differences, **more))


def same(differences: Sequence[float]) -> claims.Verdict:
    """The verdict on "equal within 0.02"."""
    claim = TOYS["toy.same"]
    return claims.judge(claim, measure(claim, differences))


# Every kind


@pytest.mark.parametrize(
    ("verdict", "kind", "words"),
    [
        (gain(0.30 + AROUND), "reproduced", "beyond the smallest effect, 5 points"),
        (gain(0.07 + AROUND), "reproduced", "beyond the smallest effect"),
        (gain(0.055 + AROUND), "inconclusive", "across the smallest effect, 5 points"),
        (gain([0.051] * 5), "reproduced", "beyond"),  # no spread at all
        (gain([0.05] * 5), "no difference", "within ±5 points"),
        (gain(0.0 + AROUND), "no difference", "within ±5 points"),
        (gain(0.03 + AROUND), "no difference", "within ±5 points"),
        (gain(-0.03 + AROUND), "no difference", "within ±5 points"),
        (gain(-0.045 + AROUND), "not reproduced", "opposite effect"),
        (gain(-0.30 + AROUND), "not reproduced", "opposite effect"),
        (gain(-0.01 + 5 * AROUND), "not reproduced", "smaller than the smallest"),
        (gain(0.02 + 9 * AROUND), "inconclusive", "across the smallest effect"),
        (error(-3 + AROUND), "supported", "beyond the smallest effect, 0.5"),
        (error(3 + AROUND), "not supported", "opposite effect"),
        (error(10 * AROUND), "no difference", "within ±0.5"),
        (error(0.3 + 50 * AROUND), "not supported", "smaller than the smallest"),
        (error(-0.5 + AROUND), "inconclusive", "across the smallest effect"),
        (same(AROUND / 2), "supported", "equal within ±2 points"),
        (same(0.3 + AROUND), "not supported", "outside ±2 points"),
        (same(-0.3 + AROUND), "not supported", "outside ±2 points"),
        (same(0.02 + AROUND), "inconclusive", "across ±2 points"),
    ],
)
def test_verdict_by_the_interval(verdict: claims.Verdict, kind: str, words: str):
    assert verdict.kind == kind and words in verdict.reason, verdict
    assert (verdict.n, verdict.planned, verdict.agrees) == (5, 5, None)
    assert verdict.low <= verdict.mean <= verdict.high
    assert verdict.seeds == FRESH and len(verdict.differences) == 5
    assert verdict.bound == TOYS[verdict.claim].test("full").effect


def test_a_claim_of_equality_by_a_paper_is_reproduced():
    claim = replace(TOYS["toy.same"], origin="paper")
    assert claims.judge(claim, measure(claim, AROUND / 2)).kind == "reproduced"
    assert claims.judge(claim, measure(claim, 1 + AROUND)).kind == "not reproduced"


def test_few_fresh_seeds_are_only_indicative():
    for differences, agrees in ([0.3], True), ([0.04], False), ([0.3] * 4, True):
        verdict = gain(differences)
        assert verdict.kind == "indicative" and verdict.agrees is agrees
    assert verdict.text == "indicative (agrees)" and verdict.n == 4
    assert "4 of 5 fresh seeds" in verdict.reason
    assert gain([0.3]).low is None, "one seed has no interval over seeds"
    lost = gain([0.3, 0.3], shuffled_text=0.4)
    assert lost.agrees is False and "shuffled text is not beaten" in lost.reason


def test_quick_decides_nothing_whatever_its_seeds():
    claim = TOYS["toy.gain"]
    runs = measure(
        claim, 0.3 + AROUND, profile="quick", seeds=range(5), shuffled_text=-1
    )
    verdict = claims.judge(claim, runs)
    assert (verdict.kind, verdict.agrees, verdict.n) == ("indicative", True, 5)
    assert verdict.planned == 0 and "any seed" in verdict.reason


def test_pilot_seeds_are_shown_and_never_counted():
    claim = TOYS["toy.gain"]
    pilots = measure(claim, [-9.0, 9.0], seeds=(0, 1), shuffled_text=-10)
    fresh = measure(claim, 0.3 + AROUND, shuffled_text=-1)
    verdict = claims.judge(claim, [*pilots, *fresh])
    assert verdict.kind == "reproduced" and verdict.n == 5
    assert verdict.pilot == (-9.0, 9.0)
    assert verdict.mean == pytest.approx(0.3) == verdict.treatment.mean
    # they are of an earlier test as a rule
    earlier = [replace(pilot, test="earlier") for pilot in pilots]
    assert claims.judge(claim, [*earlier, *fresh]).kind == "reproduced"
    alone = claims.judge(claim, pilots)
    assert (alone.kind, alone.n, alone.pilot) == ("not run", 0, (-9.0, 9.0))
    assert "no fresh seed yet" in alone.reason


def test_other_seeds_than_those_named_do_not_count():
    claim = TOYS["toy.gain"]
    fresh = measure(claim, 0.3 + AROUND[:4], shuffled_text=-1)
    other = measure(claim, [0.3], seeds=(99,), shuffled_text=-1)
    verdict = claims.judge(claim, [*fresh, *other])
    assert (verdict.kind, verdict.n, verdict.pilot) == ("indicative", 4, ())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share of the mean's error": 0.9}, "mean's error is 0.9 and should be at mo"),
        (
            {"accuracy of the text tower": 0.2},
            "text tower is 0.2 and should be at least",
        ),
        # the mean over the seeds decides
        ({"accuracy of the text tower": [0.9, 0.9, 0.9, 0.1, 0.1]}, "is 0.58"),
    ],
)
@pytest.mark.parametrize("differences", [-3 + AROUND, AROUND, 3 + AROUND])
def test_a_precondition_that_fails_takes_every_verdict_away(differences, values, words):
    verdict = error(differences, preconditions=LEARNED | values)
    assert verdict.kind == "not sensitive here" and words in verdict.reason
    (name,) = values
    outcome = verdict.preconditions[name]
    assert outcome.met is False and outcome.value is not None
    assert outcome.bound == {"share of the mean's error": 0.8}.get(name, 0.6)
    (other,) = set(LEARNED) - set(values)
    assert verdict.preconditions[other].met


def test_a_precondition_is_met_at_its_bound_and_unmet_where_it_is_missing():
    at = {"share of the mean's error": 0.8, "accuracy of the text tower": 0.6}
    assert error(-3 + AROUND, preconditions=at).kind == "supported"
    gone = error(-3 + AROUND, preconditions={"accuracy of the text tower": 0.9})
    assert gone.kind == "not sensitive here" and "not recorded" in gone.reason
    claim = TOYS["toy.error"]
    runs = measure(claim, -3 + AROUND, preconditions=LEARNED)
    gap = claims.judge(claim, [replace(runs[0], preconditions={}), *runs[1:]])
    assert gap.kind == "not sensitive here" and "by every run" in gap.reason


@pytest.mark.parametrize(
    ("values", "beaten", "words"),
    [
        (0.5, False, "control shuffled text is not beaten"),
        (0.30 + AROUND[::-1], None, "control shuffled text is undecided"),
        ([0.0, 0.9, 0.5, 0.1, 0.2], None, "control shuffled text is undecided"),
    ],
)
def test_a_control_that_is_not_beaten_costs_the_verdict(values, beaten, words):
    verdict = gain(0.30 + AROUND, shuffled_text=values)
    assert verdict.kind == "inconclusive" and words in verdict.reason
    outcome = verdict.controls["shuffled text"]
    assert outcome.beaten is beaten and outcome.expected.why
    assert outcome.value.mean == pytest.approx(np.mean(values))
    assert outcome.difference.mean == pytest.approx(0.3 - np.mean(values))
    # a claim that fails fails, whatever its controls do
    assert gain(AROUND, shuffled_text=values).kind == "no difference"
    assert gain(-1 + AROUND, shuffled_text=values).kind == "not reproduced"


def test_a_control_must_be_beaten_by_its_own_effect():
    claim = asked("toy.gain", controls={"mean": Comparison("greater", 0.2, "trivial")})
    near = claims.judge(claim, measure(claim, 0.3 + AROUND, mean=0.15))
    assert near.kind == "inconclusive" and near.controls["mean"].beaten is False
    far = claims.judge(claim, measure(claim, 0.3 + AROUND, mean=0.05))
    assert far.kind == "reproduced" and far.controls["mean"].beaten is True


def test_a_control_that_is_missing_in_a_seed_costs_the_verdict():
    claim = TOYS["toy.gain"]
    runs = measure(claim, 0.3 + AROUND, shuffled_text=-1)
    for gone in ({0}, set(range(5))):
        some = [
            replace(run, controls={}) if k in gone else run
            for k, run in enumerate(runs)
        ]
        verdict = claims.judge(claim, some)
        assert verdict.kind == "inconclusive"
        assert "shuffled text is missing in a seed" in verdict.reason
        outcome = verdict.controls["shuffled text"]
        assert outcome.missing == len(gone) and outcome.beaten is None


def test_an_equality_needs_its_controls_too():
    claim = asked("toy.same", controls={"mean": Comparison("greater", 0.0, "trivial")})
    runs = measure(claim, AROUND / 2, mean=0.5)
    assert claims.judge(claim, runs).kind == "inconclusive"
    assert claims.judge(claim, measure(claim, AROUND / 2, mean=-1)).kind == "supported"


def test_what_is_exact_holds_or_does_not():
    claim = TOYS["toy.operations"]
    for seeds in ((10,), FRESH, (7, 8)):
        count = [10.0] * len(seeds)
        verdict = claims.judge(claim, measure(claim, count, 20.0, seeds=seeds))
        assert (verdict.kind, verdict.agrees) == ("exact", True)
        assert verdict.text == "exact (holds)" and verdict.n == len(seeds)
        assert verdict.interval is None and verdict.resampled is None
    odd = claims.judge(claim, measure(claim, [10.0, 20.0], 20.0))
    assert (odd.kind, odd.text) == ("exact", "exact (does not hold)")
    quick = claims.judge(claim, measure(claim, [10.0], 20.0, profile="quick"))
    assert quick.kind == "exact"


def test_nothing_measured_is_not_run_with_the_reason():
    claim = TOYS["toy.gain"]
    assert claims.judge(claim, [], "full").kind == "not run"
    assert claims.judge(claim, [], "full").reason == "no record yet"
    assert "a GPU for days" in claims.judge(claim, [], "paper").reason


def test_measurements_that_do_not_belong_together_are_refused():
    claim = TOYS["toy.gain"]
    one = measure(claim, [0.3, 0.3], shuffled_text=0)
    for bad in (
        measure(TOYS["toy.same"], [0.3]),
        [one[0], replace(one[1], profile="quick")],
        [one[0], one[0]],
        [replace(one[0], profile="paper")],
    ):
        with pytest.raises(ValueError):
            claims.judge(claim, bad)


# The rule is the one of the record


def test_a_test_that_was_changed_after_the_run_decides_nothing():
    """Whatever changes in the entry, or in the seeds, changes its digest; see
    test_claims.py for every field."""
    measured = measure(TOYS["toy.gain"], 0.3 + AROUND, shuffled_text=-1)
    assert claims.judge(TOYS["toy.gain"], measured).kind == "reproduced"
    for change in (
        lambda data: test_of(data).update(effect=0.01),
        lambda data: test_of(data).update(control="in other words"),
        lambda data: test_of(data)["controls"].clear(),
        lambda data: test_of(data).update(preconditions={}),
        lambda data: data["seeds"]["full"].update(fresh=[*FRESH, 15]),
        lambda data: data["seeds"]["full"].update(fresh=[1, *FRESH], pilot=[0]),
    ):
        data = yaml.safe_load(TOY)
        change(data)
        changed = records.parse(yaml.safe_dump(data))["toy.gain"]
        verdict = claims.judge(changed, measured)
        assert verdict.kind == "rule changed after the run", change
        assert verdict.agrees is None and verdict.mean == pytest.approx(0.3)
        assert "changed after 5 of 5 runs" in verdict.reason


def test_of(data: dict[str, Any]) -> dict[str, Any]:
    return data["claims"][0]["tests"]["full"]


test_of.__test__ = False


def test_one_changed_run_is_enough_and_an_exact_one_too():
    claim, count = TOYS["toy.gain"], TOYS["toy.operations"]
    measured = measure(claim, 0.3 + AROUND, shuffled_text=-1)
    mixed = [*measured[:4], replace(measured[4], test=None)]
    assert claims.judge(claim, mixed).kind == judging.RULE_CHANGED
    assert "1 of 5" in claims.judge(claim, mixed).reason
    old = [replace(run, test="old") for run in measure(count, [10.0], 20.0)]
    assert claims.judge(count, old).kind == judging.RULE_CHANGED
    quick = measure(claim, [0.3], profile="quick", shuffled_text=-1)
    changed = claims.judge(claim, [replace(quick[0], test="old")])
    assert changed.kind == judging.RULE_CHANGED


def test_kinds_differ_in_shape_and_words():
    assert len(set(judging.ICONS.values())) == len(judging.KINDS) == 11
    assert all(len(icon) == 1 for icon in judging.ICONS.values())


def test_the_rule_is_said_in_plain_words():
    text = judging.rule_text(TOYS["toy.gain"], TOYS["toy.gain"].test("full"))
    for words in (
        "the whole 95 % interval of treatment (with text) − control (without text)",
        "lies above +5 points",
        "treatment − shuffled text above zero",
        "within ±5 points it is no difference",
        "5 fresh seeds (10, 11, 12, 13, 14)",
    ):
        assert words in text, text
    text = judging.rule_text(TOYS["toy.error"], TOYS["toy.error"].test("full"))
    assert "below −0.5" in text
    assert "decides only if accuracy of the text tower is at least 0.6" in text
    text = judging.rule_text(TOYS["toy.same"], TOYS["toy.same"].test("quick"))
    assert "within ±2 points" in text and "new test images" in text
    assert "any seed, indicative only" in text and "no difference" not in text
    text = judging.rule_text(
        TOYS["toy.operations"], TOYS["toy.operations"].test("full")
    )
    assert "in every run" in text and "interval" not in text and "seed" not in text


# Verdicts that a weaker rule gave, on the numbers that it gave them for


def five(mean: float, low: float, high: float) -> np.ndarray:
    """Five differences with the given mean and Student-t interval."""
    half = (claims.t_interval(AROUND)[1] - claims.t_interval(AROUND)[0]) / 2
    assert high - mean == pytest.approx(mean - low, abs=0.02 * (high - low))
    return mean + AROUND * (high - low) / 2 / half


def test_counting_cells_no_better_than_a_constant_is_not_reproduced():
    """CounTX on micrographs beats a threshold on similarity by far, and a constant a
    class not at all."""
    claim = asked(
        "toy.error",
        "paper",
        preconditions={},
        controls={"training mean by name": Comparison("smaller", 0.0, "trivial")},
    )
    runs = measure(
        claim, [1.435, 1.379, 1.449, 1.40, 1.44], 6.06, training_mean_by_name=1.381
    )
    verdict = claims.judge(claim, runs)
    assert verdict.kind == "inconclusive" and verdict.high < -4
    assert "training mean by name is not beaten" in verdict.reason


def test_prompts_help_and_their_ensemble_is_undecided():
    """CLIP: 13.3 points over the bare name; the ensemble over one template +0.26 points
    (−0.5 to +1.0)."""
    claim = asked("toy.gain", controls={"one": Comparison("greater", 0.0, "the half")})
    ensemble = 0.133 + AROUND
    verdict = claims.judge(
        claim, measure(claim, ensemble, one=ensemble - five(0.0026, -0.005, 0.0102))
    )
    assert verdict.kind == "inconclusive" and "one is undecided" in verdict.reason
    assert verdict.controls["one"].difference.low == pytest.approx(-0.005, abs=1e-3)


def test_a_text_tower_without_groups_cannot_tell_of_hypernyms():
    """LSeg: +2.1 of 5 points, while the text alone finds a word's group in 19.6 %."""
    words = {"text alone": Precondition("else it is not LSeg's fault", at_least=0.5)}
    claim = asked("toy.gain", controls={}, preconditions=words)
    runs = measure(claim, 0.021 + AROUND, preconditions={"text alone": 0.196})
    verdict = claims.judge(claim, runs)
    assert verdict.kind == "not sensitive here" and "0.196" in verdict.reason
    knows = measure(claim, 0.021 + AROUND, preconditions={"text alone": 0.6})
    assert claims.judge(claim, knows).kind == "no difference"


def test_the_auxiliary_loss_is_judged_by_the_final_segmentation():
    """DenseCLIP: the final mIoU +0.35 points (−2.2 to +2.9), half a point is asked."""
    claim = asked("toy.gain", controls={}, effect=0.005)
    verdict = claims.judge(claim, measure(claim, five(0.0035, -0.022, 0.029)))
    assert verdict.kind == "inconclusive"


def test_an_arm_that_never_left_the_training_mean_is_no_rival():
    """VLCounter beside CounTX, whose errors 10.65, 10.51 and 12.37 are those of the
    training mean."""
    ratio = np.array([10.65, 10.51, 12.37, 10.6, 11.0]) / [
        11.00, 10.45, 11.76, 10.9, 10.8,
    ]  # fmt: skip
    left = {"over the mean": Precondition("both arms have learned", at_most=0.8)}
    claim = asked("toy.error", direction="equal", preconditions=left)
    runs = measure(claim, 5 * AROUND - 4, preconditions={"over the mean": ratio})
    verdict = claims.judge(claim, runs)
    assert verdict.kind == "not sensitive here" and "at most 0.8" in verdict.reason


def test_a_training_that_still_swings_says_nothing_of_its_data():
    """CLIP on photographs: its accuracy moved by ten points in the last quarter."""
    flat = {"last quarter": Precondition("the training has flattened", at_most=0.03)}
    claim = asked("toy.gain", controls={}, preconditions=flat)
    runs = measure(claim, AROUND, preconditions={"last quarter": 0.10})
    assert claims.judge(claim, runs).kind == "not sensitive here"


def test_an_identity_is_exact_and_not_reproduced():
    """CLIP's polysemy: two concepts of one text are told apart in exactly half of the
    cases. DenseCLIP's operations: a count, the same in every run."""
    claim = asked("toy.gain", controls={}, exact=True)
    verdict = claims.judge(claim, measure(claim, 0.95 + AROUND, 0.5))
    assert (verdict.kind, verdict.text) == ("exact", "exact (holds)")
    claim = TOYS["toy.operations"]
    verdict = claims.judge(claim, measure(claim, [1.2e9] * 5, 1.6e9))
    assert verdict.kind == "exact" and verdict.interval is None


def test_the_affine_map_against_its_own_input_has_the_opposite_effect():
    """VLCounter: −0.0056 (−0.0105 to −0.0008), a hundredth more was claimed."""
    claim = asked("toy.gain", controls={}, effect=0.01)
    runs = measure(claim, five(-0.00565, -0.0105, -0.0008))
    verdict = claims.judge(claim, runs)
    assert verdict.kind == "not reproduced" and "opposite effect" in verdict.reason


def test_counting_the_rare_class_worse_than_a_constant_is_not_supported():
    """VLCounter's error on the rarest class beside the answer to the most frequent one,
    which it beats by ten, and beside "always two", which it does not."""
    claim = asked(
        "toy.error",
        preconditions={},
        controls={"best constant": Comparison("smaller", 0.0, "trivial")},
    )
    m5 = np.array([3.96, 4.64, 5.95, 4.2, 5.1])
    verdict = claims.judge(claim, measure(claim, m5, m5 + 10, best_constant=2.2))
    assert verdict.kind == "inconclusive"
    assert verdict.controls["best constant"].beaten is False
