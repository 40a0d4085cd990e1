"""What chapter 10 asks of trained counters: which part helps, do they follow the
question, where do their maps look?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from minilib.batch import Batch, required
from minilib.claims import Test, bootstrap_interval, load
from minilib.claims.chapter import Run
from minilib.layers.transformer import ResidualAttentionBlock
from minilib.metrics.counting import count_errors, error_difference, follows
from minilib.models import vlcounter as paper
from minilib.models.clip import VisionTransformer
from minilib.models.vlcounter import VLCounter
from minilib.models.vlcounter.prompts import PLURAL_TEMPLATES, SINGULAR_TEMPLATES
from minilib.recipes.shared.counting import (
    Counter,
    Questions,
    answers,
    best_constant,
    counted_classes,
    similarity_threshold,
    validation_target,
    window_counter,
)
from minilib.recipes.shared.counting_scenes import scenes_of
from minilib.recipes.vlcounter.chapter import Study
from minilib.recipes.vlcounter.protocol import cell_readout
from minilib.recipes.vlcounter.recipe import (
    ARMS,
    PLURAL,
    RELEASED,
    SINGULAR,
    Lesson,
    counter_of,
    singular,
    train,
    trained_parameters,
)
from minilib.scenes import VOCABULARY
from minilib.training import History

# --- The arms -------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """One arm after its training."""

    model: VLCounter
    history: History
    lesson: Lesson = RELEASED

    @property
    def counter(self) -> Counter:
        """The model as a counter that hears the words of its lesson."""
        return counter_of(self.model, self.lesson)


def train_arms(
    study: Study, seed: int, main: VLCounter, history: History
) -> dict[str, Trained]:
    """Train the arms of the profile but M5, which ``main`` is, with its history.

    All learn from the same questions in the same order, for the same number of steps.

    Returns:
        the arms by name, in the order of the profile.
    """
    arms = {}
    for name in study.values.arms:
        arm = ARMS[name]
        model, lesson = main, history
        if name != "M5":
            model, lesson = train(
                study.clip, study.train, study.values.lab, arm, seed, progress=name
            )
        arms[name] = Trained(model, lesson, arm.lesson)
    return arms


CONSTANT = "best constant"
"""Does not look at the image: the median of the training answers, on micrographs of
each name."""
BLOBS = "blobs of raw CLIP"
"""Does not learn: connected regions of CLIP's similarity map above a threshold."""
DEAF = "one answer an image"
"""Does not hear the question, and knows all answers: see :func:`deaf_answers`."""


def baselines(study: Study) -> dict[str, Counter]:
    """Return two answers to beat, fitted to the training questions alone: CONSTANT and
    BLOBS, on micrographs fitted name by name."""
    blobs, _ = similarity_threshold(
        study.clip, study.train, study.clip.device, by_name=study.photos
    )
    return {CONSTANT: best_constant(study.train, study.photos), BLOBS: blobs}


def deaf_answers(questions: Questions) -> Tensor:
    """Return the answers (N,) of who knows an image by heart but not which of the
    questions about it is asked: the median of all their true answers.

    No counter that gives an image a single answer has a smaller mean absolute error, so
    whoever beats this one reads the question.
    """
    answer = torch.zeros(len(questions))
    for image in questions.about.unique():
        rows = questions.about == image
        answer[rows] = questions.counts[rows].quantile(0.5)
    return answer


def all_answers(
    study: Study, counters: Mapping[str, Counter], questions: Questions
) -> dict[str, Tensor]:
    """Return every counter's answers (N,), and the row DEAF."""
    found = {
        name: answers(counter, questions, study.clip.device)
        for name, counter in counters.items()
    }
    return found | {DEAF: deaf_answers(questions)}


def scores(
    study: Study, found: Mapping[str, Tensor], seen: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Return the row of each counter in the chapter's table.

    Args:
        study: for its questions.
        found: answers (N,) to ``study.test`` by counter.
        seen: likewise to ``study.seen``: of seen classes, on micrographs validation.

    Returns:
        per counter "mae" and "rmse", "seen", the MAE on ``study.seen``; "present" and
        "absent", the MAE of questions for what is there and for what is not; "rarest",
        that of questions for the least frequent class of an image; and "follows", the
        share of the differences between questions about one image that its answers
        follow.
    """
    truth, rows = study.test.counts, {}
    parts = {
        "present": truth > 0,
        "absent": truth == 0,
        "rarest": dominant(study.test)[1],
    }
    for name, answer in found.items():
        errors = count_errors(answer, truth)
        rows[name] = {
            "mae": errors.mae,
            "rmse": errors.rmse,
            "seen": count_errors(seen[name], study.seen.counts).mae,
            **{part: _mae(answer, truth, which) for part, which in parts.items()},
            "follows": follows(answer, truth, study.test.about),
        }
    return rows


def _mae(answer: Tensor, truth: Tensor, which: Tensor) -> float:
    """Return the MAE over the questions ``which``, 0 where there are none."""
    return (answer - truth)[which].abs().mean().item() if which.any() else 0.0


# --- What the claims compare ----------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What a run records of a claim, as paths into its named results: "table/M5/mae" is
    the entry "mae" of the row "M5" of the result "table"."""

    treatment: str
    control: str
    controls: Mapping[str, str] = field(default_factory=dict)
    """By their names in the ledger."""
    preconditions: Mapping[str, str] = field(default_factory=dict)


def _arms(treatment: str, control: str, claim: str, *rivals: str) -> Evidence:
    """Return the evidence of a claim about two arms' MAE on the test questions, and
    about further rows of the table that the first one must beat."""
    return Evidence(
        f"table/{treatment}/mae",
        f"table/{control}/mae",
        {rival: f"table/{rival}/mae" for rival in rivals},
        {LEARNED: f"gains/{claim}"},
    )


LEARNED = "least gain over the best constant"
"""The precondition of every claim about two arms."""
_M5_LEARNED = {"M5 over the best constant": "gains/M5"}
PAIRS = {
    "parts": ("M5", "M1"),
    "prompts": ("M2", "M1"),
    "semantic": ("M2", "VPT"),
    "skips": ("M4", "M2"),
    "gate": ("M4", "plain skip"),
    "unseen": ("M4", "plain skip"),
    "affine": ("M5", "M4"),
    "plural": ("the paper's plural", "the paper's singular"),
}
"""The claims about two arms, the one that should be better first."""
RECORDED = {
    "parts": _arms(*PAIRS["parts"], "parts", CONSTANT, BLOBS, DEAF),
    **{
        claim: _arms(*PAIRS[claim], claim)
        for claim in ("prompts", "semantic", "skips", "gate", "affine")
    },
    "unseen": Evidence("gate/unseen", "gate/seen", {}, {LEARNED: "gains/unseen"}),
    "centres": Evidence(
        "maps/M5, S'/centres",
        "maps/M5, S/centres",
        {},
        _M5_LEARNED | {"similarity before it lies on objects": "maps/M5, S/objects"},
    ),
    "plural": Evidence(
        "table/the paper's plural/mae",
        "table/the paper's singular/mae",
        {},
        {LEARNED: "gains/plural", "names that both lists keep apart": "words_kept"},
    ),
    "trained": Evidence("size/share", "size/everything"),
    "reads": Evidence(
        "table/M5/follows",
        "table/shuffled words/follows",
        {DEAF: f"table/{DEAF}/follows"},
        _M5_LEARNED,
    ),
    "asked": Evidence(
        "few/asked",
        "few/constant",
        {"answer to the most frequent class": "few/swapped"},
        _M5_LEARNED,
    ),
    "rank": Evidence("pull/share", "pull/counting loss"),
}
"""Per claim that is tested what is recorded of it."""


def look_up(results: Mapping[str, Any], path: str) -> float:
    """Return one number of named results; see :class:`Evidence`."""
    value: Any = results
    for key in path.split("/"):
        value = value[key]
    return value


def record(
    run: Run[Any, Any],
    claim: str,
    results: Mapping[str, Any],
    *,
    n: int,
    interval: tuple[float, float] | None = None,
) -> None:
    """Record a claim from named results, with the controls and preconditions that the
    ledger asks for at the run's profile; where it does not test it, print why.

    Args:
        run: whose profile it is.
        claim: the id without the chapter.
        results: by name, as given to ``run.result``.
        n: number of test items.
        interval: of the difference over test items.
    """
    test = load("vlcounter")[f"vlcounter.{claim}"].tests[run.profile]
    if not isinstance(test, Test):
        run.tests(claim)  # which prints the reason
        return
    paths = RECORDED[claim]
    run.record(
        claim,
        treatment=look_up(results, paths.treatment),
        control=look_up(results, paths.control),
        controls={k: look_up(results, paths.controls[k]) for k in test.controls},
        preconditions={
            k: look_up(results, paths.preconditions[k]) for k in test.preconditions
        },
        n=n,
        interval=interval,
    )


def gains(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return by which share of its error the worse arm of each pair is below CONSTANT,
    and M5 itself: 0 where an arm has learned nothing, 1 where none errs. Pairs that
    were not trained are left out."""
    pairs = {claim: pair for claim, pair in PAIRS.items() if set(pair) <= set(table)}
    pairs["M5"] = ("M5", "M5")
    return {
        claim: 1 - max(table[arm]["mae"] for arm in pair) / table[CONSTANT]["mae"]
        for claim, pair in pairs.items()
    }


def gap_interval(
    claim: str, found: Mapping[str, Tensor], questions: Questions, seed: int
) -> tuple[float, float] | None:
    """Return the interval over images of the difference of a pair's errors, by their
    answers (N,); None where they were not both trained."""
    pair = PAIRS[claim]
    if not set(pair) <= set(found):
        return None
    first, second = (found[arm] for arm in pair)
    gap = error_difference(first, second, questions.counts)
    return bootstrap_interval(gap, seed, groups=questions.about.tolist())


def gain_of_the_gate(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return by how much the gate lowers the MAE of the same skip connections, on
    "unseen" and on "seen" classes."""
    gated, plain = table["M4"], table["plain skip"]
    return {
        "unseen": plain["mae"] - gated["mae"],
        "seen": plain["seen"] - gated["seen"],
    }


def trained_share() -> dict[str, float]:
    """Return of the released size the number of "all" parameters, of those "trained",
    and as a share of all "share" and "everything", 1; nothing is allocated."""
    with torch.device("meta"):
        official = VLCounter(paper.VLCounterConfig())
    numbers = sum(p.numel() for p in official.parameters())
    every = numbers - 1  # the authors' CLIP is without its logit scale
    trained = trained_parameters(official)
    return {
        "all": every,
        "trained": trained,
        "share": trained / every,
        "everything": 1.0,
    }


def by_name(
    questions: Questions, found: Mapping[str, Tensor]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return "mae" and "rmse" of every counter's answers (N,), for each name asked."""
    report = {}
    for name in questions.names:
        mine = torch.tensor([asked == name for asked in questions.asked])
        errors = {
            counter: count_errors(answer[mine], questions.counts[mine])
            for counter, answer in found.items()
        }
        report[name] = {k: {"mae": e.mae, "rmse": e.rmse} for k, e in errors.items()}
    return report


# --- What a counter does with the question --------------------------------------------


def simplest(questions: Questions, names: int = 3) -> list[int]:
    """Return ``names`` questions about one image, for pictures: the image with the
    fewest objects among those that show so many classes or more.

    Raises:
        ValueError: there is no such image.
    """
    present = [
        ((questions.about == image) & (questions.counts > 0)).nonzero()[:, 0]
        for image in range(len(questions.image))
    ]
    enough = [rows for rows in present if len(rows) >= names]
    if not enough:
        raise ValueError(f"no image shows {names} classes or more: ask for fewer names")
    rows = min(enough, key=lambda rows: questions.counts[rows].sum().item())
    return rows[:names].tolist()


def dominant(questions: Questions) -> tuple[Tensor, Tensor]:
    """Return which questions mean the most frequent class of their image, and which the
    least frequent one present."""
    first, last = (
        torch.zeros(len(questions), dtype=torch.bool),
        torch.zeros(len(questions), dtype=torch.bool),
    )
    counts = questions.counts
    for image in questions.about.unique():
        rows = ((questions.about == image) & (counts > 0)).nonzero()[:, 0]
        if len(rows) > 1:
            first[rows[counts[rows].argmax()]] = True
            last[rows[counts[rows].argmin()]] = True
    return first, last


def asked_for_the_few(
    answer: Tensor, questions: Questions, train: Questions
) -> dict[str, float]:
    """Return the errors of answers (N,) to the questions for the least frequent class
    of an image.

    Args:
        answer: to all questions.
        questions: with their true counts.
        train: whose rarest classes the constant is fitted to.

    Returns:
        "asked", the mean absolute error; "constant", that of the median number of the
        rarest classes of training images, for whoever knows that the rarest class is
        asked for and does not look; "swapped", that of the answers to the question for
        the most frequent class of the same image; and "n", the number of questions.
    """
    many, few = dominant(questions)
    images = questions.about[many].tolist()
    other = dict(zip(images, answer[many].tolist(), strict=True))
    swapped = torch.tensor([other[image] for image in questions.about[few].tolist()])
    truth = questions.counts[few]
    constant = train.counts[dominant(train)[1]].median()
    return {
        "asked": (answer[few] - truth).abs().mean().item(),
        "constant": (constant - truth).abs().mean().item(),
        "swapped": (swapped - truth).abs().mean().item(),
        "n": int(few.sum()),
    }


def mean_answers(
    found: Mapping[str, Tensor], questions: Questions
) -> dict[str, list[float]]:
    """Return the mean of the truth and of each counter's answers (N,) to the questions
    for the most frequent, the least frequent and the absent class of an image."""
    parts = (*dominant(questions), questions.counts == 0)
    rows = {"truth": questions.counts, **found}
    return {
        name: [answer[part].mean().item() for part in parts]
        for name, answer in rows.items()
    }


@torch.no_grad()
def attention_to_prompts(model: VLCounter, batch: Batch) -> Tensor:
    """Return how much each patch attends to the prompts in the second layer,
    (B, h, w): a sum over prompts, a mean over heads.

    Raises:
        ValueError: the variant has no prompts.
    """
    prompts, m = model.eval().prompts, model.config.prompts
    if prompts is None:
        raise ValueError("encoder='frozen' has no prompts: pass M2 or a later variant")
    visual = _tower(model)
    first, second = visual.transformer.resblocks[0], visual.transformer.resblocks[1]
    assert isinstance(second, ResidualAttentionBlock)
    text = model.encode_names(required(batch.caption, "caption"), PLURAL)
    patches = visual.conv1(model.preprocess(batch.image))
    x = visual.tokens(patches, "bilinear", double_class=True)
    x = first(torch.cat([x[:, :1], prompts(0, text), x[:, 1:]], dim=1))
    x = torch.cat([x[:, :1], prompts(1, text), x[:, 1 + m :]], dim=1)
    weights = second.attention(x).mean(1)
    return weights[:, 1 + m :, 1 : 1 + m].sum(-1).unflatten(1, patches.shape[-2:])


def _tower(model: VLCounter) -> VisionTransformer:
    """Return the image tower, which VLCounterConfig lets be nothing else."""
    assert isinstance(model.clip.visual, VisionTransformer)
    return model.clip.visual


# --- The rank-aware loss --------------------------------------------------------------


def positives(study: Study, most: int = 192) -> float:
    """Return the share of the patches with an object that the rank-aware loss takes for
    a positive of some band, over the first ``most`` training questions."""
    levels, occupied = [], []
    for rows in torch.arange(min(most, len(study.train))).split(
        study.values.lab.batch_size
    ):
        chunk = required(study.train.batch(rows.tolist()).density, "density")
        levels.append(paper.sampled_target(chunk, study.grid)[:, 0])
        largest = F.adaptive_max_pool2d(chunk, study.grid)[:, 0]
        occupied.append(largest > chunk.max() / 2)
    level, inside = torch.cat(levels), torch.cat(occupied)
    positive = (level > 0.4) & (level < 1) & inside
    return positive.sum().item() / inside.sum().item()


def rank_pull(
    study: Study, model: VLCounter, seed: int, batches: int = 12
) -> dict[str, float]:
    """Return how hard the released rank-aware loss pulls beside the counting loss.

    Args:
        study: whose training questions are looked at.
        model: M5, trained or not.
        seed: of the order of the questions.
        batches: number of batches, the first of a training.

    Returns:
        "share", the length of the gradient of the weighted rank-aware loss in units of
        that of the "counting loss", 1, by all trained numbers and without dropout, a
        mean over batches; and "largest", the largest of them.
    """
    stream = study.train.stream(study.values.lab.batch_size, seed, model.clip.device)
    numbers = [p for p in model.eval().parameters() if p.requires_grad]
    shares = []
    for step in range(batches):
        batch = stream(step)
        text = model.encode_names(required(batch.caption, "caption"), PLURAL)
        output = model(model.preprocess(batch.image), text)
        target = paper.DENSITY_SCALE * required(batch.density, "density")
        losses = (
            paper.RANK_WEIGHT * paper.rank_loss(output.similarity, target),
            paper.count_loss(output.density, target),
        )
        rank, count = (
            nn.utils.get_total_norm(
                g
                for g in torch.autograd.grad(
                    loss, numbers, retain_graph=True, allow_unused=True
                )
                if g is not None
            )
            for loss in losses
        )
        shares.append((rank / count).item())
    return {
        "share": sum(shares) / len(shares),
        "largest": max(shares),
        "counting loss": 1.0,
    }


# --- Where the similarity map looks ---------------------------------------------------


@dataclass(frozen=True)
class LargeObjects:
    """Scenes of a few large objects of two classes, and which cells of
    the map they cover."""

    batch: Batch
    """``caption`` is what is asked for."""
    inside: Tensor
    """(B, h, w) bool: the cell's centre lies in a box of what is asked for."""
    centre: Tensor
    """(B, h, w) bool: and within a quarter of the box's side of its middle."""
    other: Tensor
    """(B, h, w) bool: in a box of another class."""


def large_objects(
    study: Study, n: int = 60, seed: int = 0, part: str = "test"
) -> LargeObjects:
    """Draw ``n`` scenes of two to five objects asked for and one to three others, and
    lay the grid over them."""
    size = study.values.scenes.size
    scenes = replace(
        study.values.scenes,
        count=(2, 5),
        distractors=(1, 3),
        scale=(0.75, 1.0),
        jitter=0.5,
    )
    batch = scenes.scenes(counted_classes(part), study.clip.device).batch(
        "count", n, "test", seed
    )
    label = required(batch.label, "label")
    batch.caption = [VOCABULARY[i].plural for i in label.tolist()]
    rows, columns = study.grid
    x = (torch.arange(columns, device=batch.image.device) + 0.5) * size / columns
    y = (torch.arange(rows, device=batch.image.device) + 0.5) * size / rows
    masks = torch.zeros(
        3, n, rows, columns, dtype=torch.bool, device=batch.image.device
    )
    pairs = zip(
        required(batch.boxes, "boxes"), required(batch.classes, "classes"), strict=True
    )
    for i, (boxes, classes) in enumerate(pairs):
        middle, half = (
            (boxes[:, :2] + boxes[:, 2:]) / 2,
            (boxes[:, 2:] - boxes[:, :2]) / 2,
        )
        # (objects, columns), 1 at the box's edge
        across = (x[None] - middle[:, :1]).abs() / half[:, :1]
        down = (y[None] - middle[:, 1:]).abs() / half[:, 1:]
        reach = torch.maximum(across[:, None, :], down[:, :, None])
        asked = classes == label[i]
        masks[0, i] = (reach[asked] <= 1).any(0)
        masks[1, i] = (reach[asked] <= 0.5).any(0)
        masks[2, i] = (reach[~asked] <= 1).any(0) & ~masks[0, i]
    return LargeObjects(batch, *masks)


def area_under_curve(score: Tensor, positive: Tensor, negative: Tensor) -> float | None:
    """Return the chance that a positive cell scores higher than a negative one; None
    where one kind is missing."""
    high, low = score[positive], score[negative]
    if not len(high) or not len(low):
        return None
    wins = (high[:, None] > low[None]).double() + 0.5 * (
        high[:, None] == low[None]
    ).double()
    return wins.mean().item()


def map_scores(maps: Tensor, large: LargeObjects) -> dict[str, float]:
    """Say what maps (B, h, w) are high on, as areas under the curve, means over
    scenes; 0.5 is chance.

    Returns:
        "objects", what is asked for against background; "others", against objects of
        other classes; "centres", the middle of an object against its own rim.
    """
    background, rim = ~large.inside & ~large.other, large.inside & ~large.centre
    pairs = {
        "objects": (large.inside, background),
        "others": (large.inside, large.other),
        "centres": (large.centre, rim),
    }
    report = {}
    for name, (positive, negative) in pairs.items():
        found = [
            area_under_curve(m, p, n)
            for m, p, n in zip(maps, positive, negative, strict=True)
        ]
        kept = [value for value in found if value is not None]
        report[name] = sum(kept) / len(kept)
    return report


@torch.no_grad()
def maps_of(
    model: VLCounter, batch: Batch, templates: Sequence[str] = PLURAL
) -> dict[str, Tensor]:
    """Return the maps on the way from CLIP to the count, (B, h, w) each, and
    ``density`` (B, H, W) in objects.

    ``cosine`` is raw CLIP's, with the encoder as the variant prompts it; ``S`` and
    ``S'`` are before and after the affine map.
    """
    text = model.encode_names(required(batch.caption, "caption"), templates)
    output = model.eval()(model.preprocess(batch.image), text)
    return {
        "cosine": einsum(output.patches, text, "b e h w, b e -> b h w"),
        "S": output.raw_similarity[:, 0],
        "S'": output.similarity[:, 0],
        "density": output.density[:, 0] / paper.DENSITY_SCALE,
    }


@torch.no_grad()
def last_blocks(base: VLCounter, large: LargeObjects) -> dict[str, dict[str, float]]:
    """Return :func:`map_scores` of the frozen CLIP's cosine, with three ways to end its
    image tower.

    Args:
        base: M1; only its frozen CLIP is used.
        large: what to look at.
    """
    pixels = base.preprocess(large.batch.image)
    text = base.encode_names(required(large.batch.caption, "caption"), PLURAL)
    features = {
        "last block as CLIP has it": base.clip.encode_patches(
            pixels, normalize=True, mode="token"
        ),
        "values only, with MLP": base.clip.encode_patches(
            pixels, normalize=True, mode="value"
        ),
        "values only, no MLP (VLCounter)": paper.encode_image(
            _tower(base), None, pixels, text, ()
        )[1],
    }
    return {
        name: map_scores(einsum(patches, text, "b e h w, b e -> b h w"), large)
        for name, patches in features.items()
    }


def looks(
    base: VLCounter, models: Mapping[str, VLCounter], large: LargeObjects
) -> dict[str, dict[str, float]]:
    """Return :func:`map_scores` of the frozen CLIP's cosine (``base`` is M1, untrained)
    and of each variant's cosine, S and, where it has an affine map, S'.

    A learned product may be high or low on objects, which is all the same to the
    decoder: S and S' are turned over together where S is lower on objects than on the
    background.
    """
    frozen = maps_of(base, large.batch)["cosine"]
    found = {"frozen CLIP, cosine": map_scores(frozen, large)}
    for variant, model in models.items():
        maps = maps_of(model, large.batch)
        sign = -1 if map_scores(maps["S"], large)["objects"] < 0.5 else 1
        found[f"{variant}, cosine"] = map_scores(maps["cosine"], large)
        found[f"{variant}, S"] = map_scores(sign * maps["S"], large)
        if model.head.affine is not None:
            found[f"{variant}, S'"] = map_scores(sign * maps["S'"], large)
    return found


@torch.no_grad()
def grammar(base: VLCounter, large: LargeObjects) -> dict[str, dict[str, float]]:
    """Return :func:`map_scores` of the frozen CLIP's cosine with words in the plural
    and in the singular; ``base`` is M1, untrained."""
    lists: dict[str, tuple[Sequence[str], Callable[[str], str]]] = {
        "plural": (PLURAL, str),
        "singular": (SINGULAR, singular),
        "bare plural": (("{}",), str),
        "bare singular": (("{}",), singular),
        "the paper's plural list": (PLURAL_TEMPLATES, str),
        "the paper's singular list": (SINGULAR_TEMPLATES, singular),
    }
    names = required(large.batch.caption, "caption")
    pixels = base.preprocess(large.batch.image)
    found = {}
    for title, (templates, rename) in lists.items():
        text = base.encode_names([rename(name) for name in names], templates)
        _, patches = paper.encode_image(_tower(base), None, pixels, text, ())
        cosine = einsum(patches, text, "b e h w, b e -> b h w")
        found[title] = map_scores(cosine, large)
    return found


@torch.no_grad()
def words_kept(base: VLCounter) -> float:
    """Return the share of the vocabulary's names that the text tower, with the paper's
    lists of templates, puts nearest to the same name with templates that it has read;
    of the plural and the singular list the lower one. ``base`` is M1, untrained."""
    names = [concept.plural for concept in VOCABULARY]
    known = base.encode_names(names, PLURAL)
    shares = []
    for templates, rename in ((PLURAL_TEMPLATES, str), (SINGULAR_TEMPLATES, singular)):
        text = base.encode_names([rename(name) for name in names], templates)
        nearest = (text @ known.T).argmax(1).cpu()
        shares.append((nearest == torch.arange(len(names))).double().mean().item())
    return min(shares)


@torch.no_grad()
def inside_the_gate(model: VLCounter, batch: Batch, pick: int) -> dict[str, Tensor]:
    """Return what M5 learned of places, and what that does to image ``pick``.

    Returns:
        maps by title: "W" and "B" of the affine map (h, w), "gate", which is S'
        (h, w), and the mean size over channels of what the last skip connection adds,
        as large as the decoder's map there.

    Raises:
        ValueError: the variant has no affine map or no skip connections.
    """
    affine = model.head.affine
    if affine is None or not model.head.skips:
        raise ValueError(
            f"affine={model.config.affine}, skip={model.config.skip!r}: expected an "
            "affine map and skip connections, as in M5"
        )
    text = model.encode_names(required(batch.caption, "caption"), PLURAL)
    output = model.eval()(model.preprocess(batch.image), text)
    return {
        "W": affine.weight[0, 0],
        "B": affine.bias[0, 0],
        "gate": output.similarity[pick, 0],
        "last skip, mean |.|": output.skips[-1][pick].abs().mean(0),
    }


# --- Ways to read a count from a map --------------------------------------------------


READ_OUTS = {
    "sum": "the sum of the map, as everywhere in this chapter",
    "never below zero": "answers below zero become zero",
    "rounded": "answers become whole numbers",
    "positive pixels": "the sum of the positive pixels alone",
    "cells": "one less for every patch that holds more than 1.224 objects (the rule "
    "for CARPK)",
    "against smoothed dots": "the sum, against the authors' smoothed truth",
    "twice as wide, recursive merge": "wide scenes, windows averaged one after another "
    "(the authors' merge)",
    "twice as wide, uniform merge": "wide scenes, windows averaged evenly",
}
"""What :func:`read_outs` and :func:`wide_read_outs` measure, in words."""


@torch.no_grad()
def read_outs(
    model: VLCounter, questions: Questions, batch_size: int = 40
) -> dict[str, float]:
    """Return the mean absolute error of each way to read a count from the
    same density maps.

    "sum" is the plain one. "cells" is the authors' rule for CARPK and PUCPR+, with
    cells of one patch as theirs; "against smoothed dots" keeps the sum and takes for
    the truth what their script for FSC-147 does.
    """
    patch = model.config.clip.vision.reduction
    found: dict[str, list[Tensor]] = {"sum": [], "positive pixels": [], "cells": []}
    for rows in torch.arange(len(questions)).split(batch_size):
        batch = questions.batch(rows.tolist(), model.clip.device)
        for density in maps_of(model, batch)["density"].cpu():
            cells = cell_readout(density * paper.DENSITY_SCALE, patch)
            found["sum"].append(density.sum())
            found["positive pixels"].append(density.clamp(min=0).sum())
            found["cells"].append(cells["count"])
    answer = {name: torch.stack(values) for name, values in found.items()}
    height, width = questions.image.shape[-2:]
    shape = (height, width)
    smoothed = torch.stack(
        [validation_target(points, shape, shape).sum() for points in questions.points]
    ).float()
    truth = questions.counts
    return {
        "sum": count_errors(answer["sum"], truth).mae,
        "never below zero": count_errors(answer["sum"].clamp(min=0), truth).mae,
        "rounded": count_errors(answer["sum"].round(), truth).mae,
        "positive pixels": count_errors(answer["positive pixels"], truth).mae,
        "cells": count_errors(answer["cells"], truth).mae,
        "against smoothed dots": count_errors(answer["sum"], smoothed).mae,
    }


def wide_scenes(study: Study, n: int, seed: int) -> Questions:
    """Draw ``n`` scenes twice as wide as the window, of classes that
    were never counted."""
    size = study.values.scenes.size
    scenes = scenes_of(
        study.values.scenes,
        n,
        "test",
        "test",
        seed,
        coloured=0.0,
        shape=(size, 2 * size),
    )
    return scenes.questions(("class", "absent"), plain=True, article=False)


def wide_read_outs(model: VLCounter, study: Study, seed: int) -> dict[str, float]:
    """Return the mean absolute error on :func:`wide_scenes`, read through windows, for
    both ways to merge them."""
    wide = wide_scenes(study, study.values.test_images // 5, seed)
    found = {}
    for merge in ("recursive", "uniform"):
        density = partial(model.density, merge=merge, templates=PLURAL)
        answer = answers(window_counter(density), wide, study.clip.device)
        errors = count_errors(answer, wide.counts)
        found[f"twice as wide, {merge} merge"] = errors.mae
    return found
