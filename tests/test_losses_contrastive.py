"""Contrastive losses against the released code's numbers, and their formulae written out in Python's own floats."""

import json
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch

from gsfields.losses import pairs
from gsfields.losses.contrastive import (
    associative_embedding,
    concentration,
    dino,
    dino_center,
    linear_assignment,
    margin,
    segment_consistency,
    semantic_cross_entropy,
    slow_fast,
    slow_fast_and_concentration,
    vanilla,
    virtual_labels,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "contrastive_lift_losses.json"
FORMS = ["paper", "released"]
both_forms = pytest.mark.parametrize("form", FORMS)
both_kernels = pytest.mark.parametrize("kernel", ["double", "plain"])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pixels(p=9, d=3, seed=0):
    """Embeddings of p pixels, their labels (each of four, with gaps, and 0 among them) and confidences."""
    g = torch.Generator().manual_seed(seed + 100)
    labels = torch.tensor([0, 3, 4, 40])[torch.randperm(p, generator=g) % 4]
    return normal(p, d, seed=seed), labels, torch.rand(p, generator=g, dtype=torch.float64)


def halves(p=9, q=11, d=3):
    """A fast and a slow half: label 4 is in the fast one only, label 7 in the slow one only."""
    fast, labels_fast, confidence = pixels(p, d)
    slow, labels_slow, _ = pixels(q, d, seed=1)
    labels_slow[labels_slow == 4] = 7
    return fast, slow, labels_fast, labels_slow, confidence


# -------------------------------------------------------------------------------------------------- released code


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("../shared/golden/contrastive_lift_losses.json is not present")
    return json.loads(GOLDEN.read_text())


def golden_halves(golden, labels):
    rows = torch.tensor(golden["features_fast_then_slow"], dtype=torch.float64)
    labels, confidence = torch.tensor(golden[labels]), torch.tensor(golden["conf"], dtype=torch.float64)
    return rows, (labels[:4], labels[4:]), confidence[:4]


def released_total(rows, labels, confidence):
    fast, slow = rows[:4, :3], rows[4:, 3:]
    pull = concentration(fast, slow, *labels, confidence, form="released")
    return pull + slow_fast(fast, slow, *labels, form="released")


def test_slow_fast_and_its_gradient_are_the_released_codes(golden):
    rows, labels, confidence = golden_halves(golden, "labels")
    rows.requires_grad_()
    loss = released_total(rows, labels, confidence)
    loss.backward()
    assert loss.item() == pytest.approx(golden["out"]["slow_fast_total"], abs=1e-6)
    expected = torch.tensor(golden["out"]["slow_fast_grad_wrt_features"], dtype=torch.float64)
    assert torch.allclose(rows.grad, expected, atol=1e-6)


def test_where_the_released_code_is_not_a_number_the_loss_is_zero(golden):
    rows, labels, confidence = golden_halves(golden, "labels_no_shared")
    assert golden["out"]["slow_fast_no_shared_labels"] is None
    assert released_total(rows, labels, confidence).item() == 0


def test_vanilla_is_the_released_codes(golden):
    rows, _, _ = golden_halves(golden, "labels")
    labels, out = torch.tensor(golden["labels"]), golden["out"]
    ones = vanilla(rows[:, :3], labels, form="released", temperature=1)
    assert ones.item() == pytest.approx(out["vanilla_T1"], abs=1e-6)
    assert vanilla(rows[:, :3], labels, form="released").item() == pytest.approx(
        out["vanilla_T100"], abs=1e-6
    )


def test_virtual_labels_are_the_released_codes(golden):
    case = golden["out"]["linear_assignment"]
    assert (
        virtual_labels(torch.tensor(case["scores"]), torch.tensor(case["labels"])).tolist() == case["virtual"]
    )


# ------------------------------------------------------------------------------------------ formulae, pair by pair


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def middle(points):
    return [mean(column) for column in zip(*points)]


def similarity(d, kernel):
    return math.exp(-d) if kernel == "double" else -d


@both_forms
@both_kernels
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_slow_fast_is_its_formula(form, kernel, temperature):
    fast, slow, labels_fast, labels_slow, _ = halves()
    power = 2 if form == "paper" else 1
    terms = []
    for f, label in zip(fast.tolist(), labels_fast.tolist()):
        scores = [
            (math.exp(similarity(math.dist(f, s) ** power / temperature, kernel)), other)
            for s, other in zip(slow.tolist(), labels_slow.tolist())
            if other
        ]
        same = sum(score for score, other in scores if other == label)
        if label and same:
            terms.append(-math.log(same / sum(score for score, _ in scores)))
    loss = slow_fast(fast, slow, labels_fast, labels_slow, form=form, kernel=kernel, temperature=temperature)
    assert loss.item() == pytest.approx(mean(terms), rel=1e-12)


@both_forms
@pytest.mark.parametrize("weighted", [True, False])
def test_concentration_is_its_formula(form, weighted):
    fast, slow, labels_fast, labels_slow, confidence = halves()
    weights = confidence if weighted else torch.ones_like(confidence)
    squares, rewards = [], []
    for label in {3, 40}:
        center = middle([s for s, other in zip(slow.tolist(), labels_slow.tolist()) if other == label])
        of = [
            (math.dist(f, center) ** 2, c)
            for f, l, c in zip(fast.tolist(), labels_fast, weights.tolist())
            if l == label
        ]
        squares += [c * d for d, c in of]
        rewards.append(mean(c * math.exp(-d) for d, c in of))
    expected = mean(squares) if form == "paper" else -mean(rewards)
    loss = concentration(fast, slow, labels_fast, labels_slow, confidence if weighted else None, form=form)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@both_forms
@both_kernels
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_both_together_are_their_sum(form, kernel, weight):
    *given, confidence = halves(40, 50)
    features = given[0].requires_grad_()
    apart = slow_fast(*given, form=form, kernel=kernel, temperature=0.5)
    apart = apart + weight * concentration(*given, confidence, form=form)
    together = slow_fast_and_concentration(
        *given, confidence, weight=weight, form=form, kernel=kernel, temperature=0.5
    )
    assert together.item() == pytest.approx(apart.item(), rel=1e-14)
    slopes = [torch.autograd.grad(loss, features)[0] for loss in (together, apart)]
    assert slopes[0].any()
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-15)


@both_forms
@both_kernels
@pytest.mark.parametrize("temperature", [None, 3.0])
def test_vanilla_is_its_formula(form, kernel, temperature):
    features, labels, _ = pixels(12)
    labels[0] = 99  # without partner
    rows = [(f, l) for f, l in zip(features.tolist(), labels.tolist()) if l]
    total = 0.0
    for i, (f, label) in enumerate(rows):
        same = every = 0.0
        for j, (g, other) in enumerate(rows):
            t = temperature or (1 if form == "paper" else 100)
            if form == "released" and other != label:
                t = 1
            score = math.exp(similarity(math.dist(f, g) ** 2 / t, kernel))
            every += score
            same += score * (other == label and (form == "paper" or i != j))
        total -= math.log(same / every) if same else 0
    loss = vanilla(features, labels, form=form, kernel=kernel, temperature=temperature)
    assert loss.item() == pytest.approx(total / len(rows), rel=1e-12)


@both_forms
def test_associative_embedding_is_its_formula(form):
    features, labels, _ = pixels(12)
    labels[labels == 0] = 40  # the largest segment
    segments = {n: [f for f, l in zip(features.tolist(), labels) if l == n] for n in (3, 4, 40)}
    means = {n: middle(points) for n, points in segments.items()}
    pulls = {n: [math.dist(f, means[n]) ** 2 for f in points] for n, points in segments.items()}
    if form == "paper":
        pull = mean(mean(values) for values in pulls.values())
        push = mean(
            math.exp(-(math.dist(a, b) ** 2) / (2 * 0.7**2)) for a in means.values() for b in means.values()
        )
    else:
        pull = mean(value for values in pulls.values() for value in values)
        push = mean(math.exp(-(math.dist(a, b) ** 2) / 0.7) for a, b in permutations(means.values(), 2))
    loss = associative_embedding(features, labels, form=form, sigma=0.7)
    assert loss.item() == pytest.approx(pull + push, rel=1e-12)


@pytest.mark.parametrize("rows", [4, 256])
def test_margin_is_its_formula(monkeypatch, rows):
    monkeypatch.setattr(pairs._Hinges, "rows", rows)  # some strips, the last ragged; one strip
    features, labels, _ = pixels(10)
    known = [(f, l) for f, l in zip(features.tolist(), labels.tolist()) if l]
    apart = [(math.dist(f, g), l == k) for (f, l), (g, k) in permutations(known, 2)]
    hinges = [max(0, 2.5 - d) ** 2 for d, same in apart if not same]
    assert 0 in hinges and max(hinges) > 0
    expected = mean(d**2 for d, same in apart if same) + mean(hinges)
    assert margin(features, labels, distance=2.5).item() == pytest.approx(expected, rel=1e-12)
    variable = features.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: margin(f, labels, distance=2.5), (variable,))


def softmax(values, temperature=1.0):
    exps = [math.exp(v / temperature) for v in values]
    return [e / sum(exps) for e in exps]


def test_dino_is_the_mean_over_pairs_of_one_segment():
    fast, slow, labels_fast, labels_slow, _ = halves()
    center = normal(3, seed=5)
    terms = []
    for f, label in zip(fast.tolist(), labels_fast.tolist()):
        student = softmax(f, 0.5)
        pairs = [
            -sum(
                t * math.log(s)
                for t, s in zip(softmax([a - b for a, b in zip(v, center.tolist())], 0.25), student)
            )
            for v, other in zip(slow.tolist(), labels_slow.tolist())
            if label and other == label
        ]
        terms += [mean(pairs)] if pairs else []
    temperatures = {"student_temperature": 0.5, "teacher_temperature": 0.25}
    loss = dino(fast, slow, labels_fast, labels_slow, center, **temperatures)
    assert loss.item() == pytest.approx(mean(terms), rel=1e-12)
    uncentered = dino(fast, slow, labels_fast, labels_slow, **temperatures)
    assert uncentered != loss and uncentered == dino(
        fast, slow, labels_fast, labels_slow, 0 * center, **temperatures
    )


def test_the_center_of_dino_follows_the_slow_pixels_of_segments():
    center, slow = normal(3), normal(4, 3, seed=1)
    moved = dino_center(center, slow, torch.tensor([0, 5, 0, 6]), momentum=0.75)
    assert torch.allclose(moved, 0.75 * center + 0.25 * (slow[1] + slow[3]) / 2)
    assert torch.equal(dino_center(center, slow, torch.zeros(4, dtype=torch.int)), center)


# --------------------------------------------------------------------------------------------- linear assignment


def test_virtual_labels_maximise_the_agreement_of_all_matchings():
    logits, labels, _ = pixels(20, 4, seed=3)
    agreement = {n: logits.softmax(1)[labels == n].mean(0).tolist() for n in (3, 4, 40)}
    best = max(permutations(range(4), 3), key=lambda ids: sum(a[i] for a, i in zip(agreement.values(), ids)))
    expected = [-1 if l == 0 else dict(zip(agreement, best))[l] for l in labels.tolist()]
    assert virtual_labels(logits, labels).tolist() == expected


@both_forms
def test_linear_assignment_is_weighted_cross_entropy_with_virtual_labels(form):
    logits, labels, confidence = pixels(20, 4, seed=3)
    virtual = virtual_labels(logits, labels)
    rows = zip(logits.tolist(), virtual.tolist(), confidence.tolist())
    expected = mean(-c * math.log(softmax(row)[v]) for row, v, c in rows if v >= 0)
    loss = linear_assignment(logits, labels, confidence, form=form)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert linear_assignment(logits, labels, torch.ones(20), form=form) == linear_assignment(
        logits, labels, form=form
    )


def test_only_the_released_form_rests_when_all_pixels_are_right():
    logits = torch.eye(3, dtype=torch.float64)[[0, 0, 2, 1]].requires_grad_()
    labels = torch.tensor([8, 8, 2, 0])
    assert linear_assignment(logits, labels).item() > 0.5
    loss = linear_assignment(logits, labels, form="released")
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_of_more_segments_than_identifiers_the_best_are_matched():
    logits = torch.tensor([[0.1, 0.0], [5.0, 0.0], [0.0, 5.0]])
    assert virtual_labels(logits, torch.tensor([1, 2, 3])).tolist() == [-1, 0, 1]


# ----------------------------------------------------------------------------------------------------- semantics


def blended(p=6, k=4):
    """Probabilities of k classes, blended with opacities below 1."""
    opacity = torch.linspace(0.2, 1, p, dtype=torch.float64)[:, None]
    return normal(p, k).softmax(1) * opacity


def test_semantic_cross_entropy_is_its_formula():
    p, weights = blended(), torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    confidence, classes = pixels(6)[2], torch.tensor([0, 1, 2, 3, 2, 0])
    shares = [[v / sum(row) for v in row] for row in p.tolist()]
    plain = mean(-math.log(row[k] + 1e-8) for row, k in zip(shares, classes.tolist()))
    assert semantic_cross_entropy(p, classes).item() == pytest.approx(plain, rel=1e-12)
    weighted = mean(
        -c * weights[k].item() * math.log(row[k] + 1e-8)
        for row, k, c in zip(shares, classes.tolist(), confidence.tolist())
    )
    loss = semantic_cross_entropy(p, classes, confidence, class_weights=weights)
    assert loss.item() == pytest.approx(weighted, rel=1e-12)
    soft = normal(6, 4, seed=7).softmax(1)
    expected = mean(
        -sum(t * math.log(v + 1e-8) for t, v in zip(*rows)) for rows in zip(soft.tolist(), shares)
    )
    assert semantic_cross_entropy(p, soft).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("hard", [True, False])
def test_segment_consistency_asks_for_the_mean_of_the_segment(hard):
    p, segments, confidence = blended(8), torch.tensor([5, 5, 0, 9, 9, 9, 5, 0]), pixels(8)[2]
    shares = p / p.sum(1, keepdim=True)
    target = torch.stack([shares[segments == s].mean(0) if s else torch.zeros(4) for s in segments.tolist()])
    if hard:
        target = target.argmax(1)
    kept = segments > 0
    p.requires_grad_()
    expected = semantic_cross_entropy(p[kept], target[kept], confidence[kept])
    loss = segment_consistency(p, segments, confidence, hard=hard)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, p)[0] for value in (loss, expected)]
    assert torch.allclose(*gradients, atol=1e-12)  # the mean is a constant


def test_pixels_that_show_nothing_add_nothing():
    p = blended().float()
    p[0], p[1] = 0, torch.tensor([1.0, 0, 0, 0])
    p.requires_grad_()
    loss = semantic_cross_entropy(p, torch.tensor([1, 1, 2, 3, 2, 0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(p.grad).all() and (p.grad[0] == 0).all()
    assert p.grad[1, 1] < -1e5  # certain and wrong: a steep slope, not an infinite one


# ---------------------------------------------------------------------------------------------------- bad input

X, L = torch.zeros(4, 3), torch.ones(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: slow_fast(X, X, L, L, form="text"),
            ValueError,
            "form must be 'paper' or 'released', but is 'text'",
        ),
        (
            lambda: slow_fast(X, X, L, L, kernel="rbf"),
            ValueError,
            "kernel must be 'double' or 'plain', but is 'rbf'",
        ),
        (lambda: vanilla(X, L, form="text"), ValueError, "form must be 'paper' or 'released', but is 'text'"),
        (
            lambda: linear_assignment(X, L, form=None),
            ValueError,
            "form must be 'paper' or 'released', but is None",
        ),
        (
            lambda: slow_fast(X, X, L, L, temperature=0),
            ValueError,
            "temperature must be positive and finite, but is 0",
        ),
        (lambda: margin(X, L, distance=-1), ValueError, "distance must be positive and finite, but is -1"),
        (lambda: vanilla(X[0], L), ValueError, "features must be [pixels, channels], but is [3]"),
        (lambda: vanilla(X[:, :0], L), ValueError, "features must be [pixels, channels], but is [4, 0]"),
        (
            lambda: vanilla(X.half(), L),
            TypeError,
            "features must be float32 or float64, but is torch.float16",
        ),
        (lambda: vanilla(X, L.float()), TypeError, "labels must be integers, but is torch.float32"),
        (lambda: vanilla(X, L > 0), TypeError, "labels must be integers, but is torch.bool"),
        (lambda: margin(X, L[:3]), ValueError, "labels must be [4] like features, but is [3]"),
        (lambda: margin(X, -L), ValueError, "labels must be 0 (none) or above, but has -1"),
        (lambda: slow_fast(X, X, L, L[:3]), ValueError, "labels_slow must be [4] like slow, but is [3]"),
        (lambda: dino(X, X, L[:, None], L), ValueError, "labels_fast must be [4] like fast, but is [4, 1]"),
        (
            lambda: slow_fast(X, X[:, :2], L, L),
            ValueError,
            "slow must be [Q, 3] of torch.float32 like fast, but is [Q, 2] of torch.float32",
        ),
        (lambda: concentration(X, X, L, L, X), ValueError, "confidence must be [4], but is [4, 3]"),
        (
            lambda: slow_fast_and_concentration(X, X, L, L, weight=-1),
            ValueError,
            "weight must be 0 or above, but is -1",
        ),
        (lambda: linear_assignment(X, L, X[:2, 0]), ValueError, "confidence must be [4], but is [2]"),
        (lambda: dino(X, X, L, L, X), ValueError, "center must be [3] like one of slow, but is [4, 3]"),
        (
            lambda: semantic_cross_entropy(X, X[:, :2]),
            ValueError,
            "target must be [4] classes or [4, 3] shares, but is [4, 2] of torch.float32",
        ),
        (lambda: semantic_cross_entropy(X, 3 * L), ValueError, "target must be in 0 … 2, but has 3 … 3"),
        (
            lambda: semantic_cross_entropy(X, L, class_weights=X[:, 0]),
            ValueError,
            "class_weights must be [3], but is [4]",
        ),
        (
            lambda: segment_consistency(X, L.double()),
            TypeError,
            "segments must be integers, but is torch.float64",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message
