"""Losses that turn 2D segments without identity into embeddings with it: Contrastive Lift and its baselines.

Contrastive Lift (Bhalgat et al., NeurIPS 2023); equations are numbered as in the third chapter of Bhalgat's thesis.
Where the released code differs from the text, `form` chooses: "paper" or "released".

All are pure functions of the pixels sampled from one image: embeddings [P, D] as rendered, float32 or float64, and
labels [P], integers that mean nothing outside that image. Label 0 is no segment: such pixels are dropped first.
Labels may be any numbers, in any order, and only which pixels share one matters. Where nothing is left to compare
(no pixels, one pixel, no label in both halves) the loss and its gradient are 0, never NaN.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from gsfields.losses.pairs import Similarity, hinges, surprise

Form = Literal["paper", "released"]
Kernel = Literal["double", "plain"]


# ------------------------------------------------------------------------------------------------ slow-fast fusion


def slow_fast(
    fast: Tensor,
    slow: Tensor,
    labels_fast: Tensor,
    labels_slow: Tensor,
    *,
    form: Form = "paper",
    kernel: Kernel = "double",
    temperature: float = 1.0,
) -> Tensor:
    """Slow-fast contrastive loss, equation 3.4: each fast pixel agrees with the slow ones of its segment.

    Mean over fast pixels u, of those with a partner, of -log(Σ_same exp s(u, v) / Σ_all exp s(u, v)), v slow pixels.
    kernel "double" is the paper's and the code's: s = exp(-x), between 0 and 1. So a probability never comes near 0
    or 1: with n partners and m others a pixel's loss lies between log(1 + m/(n e)), its floor, and log(1 + m e/n),
    and the gradient of pairs that are far apart fades. kernel "plain" is what other contrastive systems take: s = -x,
    with floor 0 and, as long as a pixel is nearer to others, a gradient at any distance.

    x is ‖f - f̄‖² / T in the form "paper", where γ = 1/T, and the unsquared ‖f - f̄‖ / T in the form "released". The
    slope of the latter at distance 0, where there is none, is taken as 0.

    Args:
        fast: [P, D] embeddings of the field in training.
        slow: [Q, D] of its moving average, at other pixels of the same image; a constant here.
        labels_fast, labels_slow: [P], [Q].
        temperature: T.
    """
    return _slow_fast(_halves(fast, slow, labels_fast, labels_slow), form, kernel, temperature)


def concentration(
    fast: Tensor,
    slow: Tensor,
    labels_fast: Tensor,
    labels_slow: Tensor,
    confidence: Tensor | None = None,
    *,
    form: Form = "paper",
) -> Tensor:
    """Concentration loss, equation 3.5: a fast pixel lies near the slow mean c̄ of its segment.

    "paper": the mean over pixels of ‖f - c̄‖². "released": minus the mean over segments of the mean over their pixels
    of exp(-‖f - c̄‖²), a reward between 0 and 1 that gives up on pixels far away. Confidences [P] of the fast pixels
    multiply what is averaged (only the code has them), and do not change what it is divided by.
    """
    return _concentration(_halves(fast, slow, labels_fast, labels_slow, confidence), form)


def slow_fast_and_concentration(
    fast: Tensor,
    slow: Tensor,
    labels_fast: Tensor,
    labels_slow: Tensor,
    confidence: Tensor | None = None,
    *,
    weight: float = 1.0,
    form: Form = "paper",
    kernel: Kernel = "double",
    temperature: float = 1.0,
) -> Tensor:
    """The loss of the paper: `slow_fast` plus `weight`, 0 or above, times `concentration`; partners are found once."""
    if not weight >= 0:
        raise ValueError(f"weight must be 0 or above, but is {weight}")
    halves = _halves(fast, slow, labels_fast, labels_slow, confidence)
    loss = _slow_fast(halves, form, kernel, temperature)
    return loss + weight * _concentration(halves, form) if weight else loss


def _slow_fast(halves: _Halves, form: Form, kernel: Kernel, temperature: float) -> Tensor:
    _one_of("form", form, Form)
    _one_of("kernel", kernel, Kernel)
    _positive("temperature", temperature)
    similarity = Similarity(2 if form == "paper" else 1, kernel, temperature)
    return _mean(surprise(*halves[:4], similarity))


def _concentration(halves: _Halves, form: Form) -> Tensor:
    _one_of("form", form, Form)
    centroids = _segment_means(halves.slow, halves.slow_segment)
    squared = (halves.fast - centroids[halves.fast_segment]).square().sum(1)
    if form == "paper":
        return _mean(squared * halves.confidence)
    # Not the segments of the slow half: some of those may have no fast pixel.
    _, segment = halves.fast_segment.unique(return_inverse=True)
    return -_mean(_segment_means((-squared).exp() * halves.confidence, segment))


def dino(
    fast: Tensor,
    slow: Tensor,
    labels_fast: Tensor,
    labels_slow: Tensor,
    center: Tensor | None = None,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Self-distillation in place of contrast, after DINO (Caron et al. 2021): an embedding is D logits.

    Mean over fast pixels u of the cross-entropy between softmax((f̄_v - center) / T_t) and softmax(f_u / T_s), averaged
    over all slow pixels v of u's segment. It is linear in the teacher, so its mean distribution over the segment gives
    just that, without pairs.

    Args:
        fast, slow, labels_fast, labels_slow: as in `slow_fast`.
        center: [D], a constant (see `dino_center`); 0 if None. Without it one channel may win everywhere.
        student_temperature, teacher_temperature: T_s, T_t.
    """
    _positive("student_temperature", student_temperature)
    _positive("teacher_temperature", teacher_temperature)
    halves = _halves(fast, slow, labels_fast, labels_slow)
    if center is not None:
        _check_center(center, slow)
    centered = halves.slow if center is None else halves.slow - center.detach()
    teacher = _segment_means((centered / teacher_temperature).softmax(1), halves.slow_segment)
    student = (halves.fast / student_temperature).log_softmax(1)
    return _mean(-(teacher[halves.fast_segment] * student).sum(1))


@torch.no_grad()
def dino_center(center: Tensor, slow: Tensor, labels_slow: Tensor, *, momentum: float = 0.9) -> Tensor:
    """The center [D] after one more batch: its moving average over the slow embeddings [Q, D] of segments."""
    slow, _, _ = _in_segments("slow", slow, labels_slow)
    _check_center(center, slow)
    if len(slow) == 0:
        return center.clone()
    return momentum * center + (1 - momentum) * slow.mean(0)


# ------------------------------------------------------------------------------------- one field, without slow copy


def vanilla(
    features: Tensor,
    labels: Tensor,
    *,
    form: Form = "paper",
    kernel: Kernel = "double",
    temperature: float | None = None,
) -> Tensor:
    """Contrastive loss among all P pixels, equation 3.3: -log(Σ_same exp s / Σ_all exp s) with s as in `slow_fast`.

    "paper": x = ‖f_u - f_v‖² / T for all pairs, T = 1; the sums include v = u. "released": T = 100 for pairs of one
    segment and 1 for others, `temperature` being the former; u is not its own partner but counts in the denominator;
    pixels without partner add nothing to a sum that is divided by P.
    """
    _one_of("form", form, Form)
    _one_of("kernel", kernel, Kernel)
    if temperature is None:
        temperature = 1.0 if form == "paper" else 100.0
    _positive("temperature", temperature)
    features, labels, _ = _in_segments("features", features, labels)
    _, segment = labels.unique(return_inverse=True)
    if form == "paper":
        return _mean(surprise(features, features, segment, segment, Similarity(2, kernel, temperature)))
    similarity = Similarity(2, kernel, 1.0, partner_temperature=temperature)
    return _mean(surprise(features, features, segment, segment, similarity, own_partner=False))


def associative_embedding(
    features: Tensor, labels: Tensor, *, form: Form = "paper", sigma: float = 1.0
) -> Tensor:
    """Associative embedding, equation 3.6: pixels are pulled to the mean of their segment, means pushed apart.

    "paper", as Newell et al. 2017 define it: pull is the mean over segments of the mean over their pixels of
    ‖f - c‖²; push the mean over all pairs of segments, each with itself too, of exp(-‖c - c'‖² / (2σ²)).
    "released", as the code has it in a comment: pull is the mean over pixels; push the mean over pairs of different
    segments of exp(-‖c - c'‖² / σ). Means are not constants: both terms move them.
    """
    _one_of("form", form, Form)
    _positive("sigma", sigma)
    features, labels, _ = _in_segments("features", features, labels)
    _, segment = labels.unique(return_inverse=True)
    means = _segment_means(features, segment)
    pull = (features - means[segment]).square().sum(1)
    apart = _squared_distances(means, means)
    if form == "paper":
        return _mean(_segment_means(pull, segment)) + _mean((-apart / (2 * sigma**2)).exp())
    others = ~torch.eye(len(means), dtype=torch.bool, device=means.device)
    return _mean(pull) + _mean((-apart[others] / sigma).exp())


def margin(features: Tensor, labels: Tensor, *, distance: float = 1.0) -> Tensor:
    """Margin-based contrastive loss, equation 3.7 (Hadsell et al. 2006): d² of partners, a hinge for the others.

    Mean of d² over the pairs of different pixels of one segment, plus the mean over pairs of two segments of
    max(0, distance - d)², d = ‖f_u - f_v‖. Two means rather than one over all pairs: among many objects few pairs are
    of one segment, and their pull would vanish. Where two segments coincide, d has no slope; 0 is taken.
    """
    _positive("distance", distance)
    features, labels, _ = _in_segments("features", features, labels)
    _, segment = labels.unique(return_inverse=True)
    count = torch.bincount(segment)
    # Over the ordered pairs of a segment of n, Σ ‖f_u - f_v‖² = 2 n Σ ‖f_u - c‖².
    spread = (features - _segment_means(features, segment)[segment]).square().sum(1)
    partners = (count * (count - 1)).sum()
    others = len(labels) ** 2 - count.square().sum()
    pull = 2 * (count[segment] * spread).sum() / partners.clamp(min=1)
    return pull + hinges(features, segment, distance) / others.clamp(min=1)


# ------------------------------------------------------------------------- linear assignment (Panoptic Lifting)


@torch.no_grad()
def virtual_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Which of M scene-wide identifiers each segment of an image is: [P] int64, -1 where it is none.

    Panoptic Lifting (Siddiqui et al. 2023): segments and identifiers are matched one to one so that the sum of the
    mean probabilities is the largest. Of more segments than identifiers, the best M are matched and the others are
    none, as label 0 is (the released code keeps the M lowest labels instead and gives all others identifier 0).

    Args:
        logits: [P, M] of pixels; labels: [P].
    """
    logits, known, inside = _in_segments("logits", logits, labels)
    names, segment = known.unique(return_inverse=True)
    agreement = _segment_means(logits.softmax(1), segment)
    rows, columns = linear_sum_assignment(agreement.double().cpu().numpy(), maximize=True)
    identifier = torch.full([len(names)], -1)
    identifier[torch.as_tensor(rows)] = torch.as_tensor(columns)
    virtual = torch.full(labels.shape, -1, device=labels.device)
    virtual[inside] = identifier.to(labels.device)[segment]
    return virtual


def linear_assignment(
    logits: Tensor, labels: Tensor, confidence: Tensor | None = None, *, form: Form = "paper"
) -> Tensor:
    """Panoptic Lifting's instance loss: mean of confidence times cross-entropy with `virtual_labels`.

    "released": 0 as soon as every pixel's largest logit is its virtual label; "paper": never switched off.

    Args:
        logits: [P, M], one channel for each identifier the scene may have.
        labels: [P]; confidence: [P].
    """
    _one_of("form", form, Form)
    _check_confidence(confidence, logits)
    virtual = virtual_labels(logits, labels)
    kept = virtual >= 0
    logits, virtual = logits[kept], virtual[kept]
    errors = functional.cross_entropy(logits, virtual, reduction="none")
    if form == "released" and torch.equal(logits.argmax(1), virtual):
        errors = 0 * errors
    return _mean(errors if confidence is None else errors * confidence[kept])


# ------------------------------------------------------------------------------------------------------- semantics


def semantic_cross_entropy(
    probabilities: Tensor,
    target: Tensor,
    confidence: Tensor | None = None,
    *,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean over pixels of confidence times -Σ_k w_k t_k log(p_k + 1e-8), p the blended probabilities over their sum.

    Probabilities are blended, not logits, and p need not reach sum 1 where a pixel is not opaque (Panoptic Lifting).
    Pixels that show nothing (sum below 1e-6) add 0. Here class 0 is a class like others: where it is void, its
    weight is 0.

    Args:
        probabilities: [P, K], blended per-Gaussian probabilities, ≥ 0.
        target: [P] classes, or [P, K] soft ones.
        confidence: [P], 1 if None.
        class_weights: [K], 1 if None.
    """
    _check_features("probabilities", probabilities)
    _check_confidence(confidence, probabilities)
    target = _soft_classes(target, probabilities)
    if class_weights is not None:
        if class_weights.shape != probabilities.shape[1:]:
            raise ValueError(
                f"class_weights must be [{probabilities.shape[1]}], but is {list(class_weights.shape)}"
            )
        target = target * class_weights
    shown = probabilities.sum(1, keepdim=True)
    seen = shown[:, 0] > 1e-6
    p = probabilities[seen] / shown[seen]
    errors = -(target[seen] * (p + 1e-8).log()).sum(1)
    if confidence is not None:
        errors = errors * confidence[seen]
    return errors.sum() / max(len(probabilities), 1)


def segment_consistency(
    probabilities: Tensor, segments: Tensor, confidence: Tensor | None = None, *, hard: bool = True
) -> Tensor:
    """Pixels of one 2D segment are of one class: cross-entropy with the segment's mean, a constant here.

    Panoptic Lifting, late in training. The target is the most probable class of the mean (hard) or the mean itself;
    the released code has both. Pixels of segment 0 are dropped.

    Args:
        probabilities: [P, K] as in `semantic_cross_entropy`.
        segments: [P]; confidence: [P].
    """
    _check_confidence(confidence, probabilities)
    probabilities, segments, inside = _in_segments("probabilities", probabilities, segments, "segments")
    _, segment = segments.unique(return_inverse=True)
    shares = probabilities.detach() / probabilities.detach().sum(1, keepdim=True).clamp(min=1e-6)
    means = _segment_means(shares, segment)
    target = means.argmax(1) if hard else means
    return semantic_cross_entropy(
        probabilities, target[segment], None if confidence is None else confidence[inside]
    )


# ------------------------------------------------------------------------------------------------- what they share


class _Halves(NamedTuple):
    fast: Tensor  # [P, D], pixels of which the other half has a partner
    slow: Tensor  # [Q, D], without gradient
    fast_segment: Tensor  # [P], 0 ≤ index < number of segments in the slow half
    slow_segment: Tensor  # [Q]
    confidence: Tensor  # [P]


def _halves(
    fast: Tensor,
    slow: Tensor,
    labels_fast: Tensor,
    labels_slow: Tensor,
    confidence: Tensor | None = None,
) -> _Halves:
    _check_confidence(confidence, fast)
    fast, labels_fast, inside = _in_segments("fast", fast, labels_fast, "labels_fast")
    slow, labels_slow, _ = _in_segments("slow", slow.detach(), labels_slow, "labels_slow")
    if slow.shape[1] != fast.shape[1] or slow.dtype != fast.dtype:
        raise ValueError(
            f"slow must be [Q, {fast.shape[1]}] of {fast.dtype} like fast, "
            f"but is [Q, {slow.shape[1]}] of {slow.dtype}"
        )
    names, slow_segment = labels_slow.unique(return_inverse=True)
    place = torch.searchsorted(names, labels_fast)
    shared = place < torch.searchsorted(names, labels_fast, right=True)
    weights = torch.ones_like(fast[:, 0]) if confidence is None else confidence[inside]
    return _Halves(fast[shared], slow, place[shared], slow_segment, weights[shared])


def _in_segments(
    name: str, features: Tensor, labels: Tensor, labels_name: str = "labels"
) -> tuple[Tensor, Tensor, Tensor]:
    """Features and labels (int64) of the pixels whose label is not 0, and which [P] they are."""
    _check_features(name, features)
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{labels_name} must be integers, but is {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{labels_name} must be [{len(features)}] like {name}, but is {list(labels.shape)}")
    labels = labels.long()
    if (labels < 0).any():
        raise ValueError(f"{labels_name} must be 0 (none) or above, but has {int(labels.min())}")
    inside = labels != 0
    if inside.all():  # as most often in training: nothing to copy
        return features, labels, inside
    return features[inside], labels[inside], inside


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[P, Q] ‖a - b‖²: one matrix product, about b's mean so that little is cancelled, and never below 0."""
    origin = b.detach().mean(0)
    a, b = a - origin, b - origin
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1)
    return torch.addmm(squares, a, b.T, alpha=-2).clamp(min=0)


def _segment_means(values: Tensor, segment: Tensor) -> Tensor:
    """[S, ...] means of values [n, ...] over the segments 0 … S - 1, each of which has at least one."""
    count = torch.bincount(segment)
    total = values.new_zeros(len(count), *values.shape[1:]).index_add(0, segment, values)
    return total / count.reshape([-1] + [1] * (values.ndim - 1))


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)  # 0, with a gradient, of nothing


def _soft_classes(target: Tensor, probabilities: Tensor) -> Tensor:
    """Classes [P] as one-hot rows [P, K]; soft ones as they are."""
    pixels, classes = probabilities.shape
    soft = target.is_floating_point()
    if target.shape != ((pixels, classes) if soft else (pixels,)):
        allowed = f"[{pixels}] classes or [{pixels}, {classes}] shares"
        raise ValueError(f"target must be {allowed}, but is {list(target.shape)} of {target.dtype}")
    if soft:
        return target
    if pixels and (int(target.min()) < 0 or int(target.max()) >= classes):
        raise ValueError(
            f"target must be in 0 … {classes - 1}, but has {int(target.min())} … {int(target.max())}"
        )
    return functional.one_hot(target.long(), classes).to(probabilities.dtype)


def _check_features(name: str, features: Tensor) -> None:
    if features.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, but is {features.dtype}")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} must be [pixels, channels], but is {list(features.shape)}")


def _check_confidence(confidence: Tensor | None, pixels: Tensor) -> None:
    if confidence is not None and confidence.shape != pixels.shape[:1]:
        raise ValueError(f"confidence must be {list(pixels.shape[:1])}, but is {list(confidence.shape)}")


def _check_center(center: Tensor, slow: Tensor) -> None:
    if center.shape != slow.shape[1:]:
        raise ValueError(
            f"center must be {list(slow.shape[1:])} like one of slow, but is {list(center.shape)}"
        )


def _one_of(name: str, value: str, allowed: object) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be {' or '.join(map(repr, get_args(allowed)))}, but is {value!r}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, but is {value}")
