from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from model.architecture import EcapaDims, FrontEndSpec, UnknownKind
from model.bundle import BundleError, UnknownRule, load_weights, read_card, write_bundle
from model.bundle_making.unknown_choice import KINDS, Heard, auroc, leave_one_class_out, only, strangeness, without
from model.data.dataset import WindowSet
from model.engine import Engine
from model.unknown import UnknownScore
from model.untrained import write_untrained_bundle
from tests.labelled_windows import LABELS, labelled_windows


def _heard(n: int = 50, embedding: int = 6, labels: int = 3, seed: int = 0) -> Heard:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, labels)).astype(np.float32) * 4
    return Heard(logits, rng.standard_normal((n, embedding)).astype(np.float32))


def _fitted(kind: UnknownKind, embedding: int = 6) -> UnknownScore:
    score = UnknownScore(kind, embedding, 3)
    score.fit(_heard(60, embedding, seed=7).embeddings + np.float32(1), np.arange(60) % 3)
    return score


def test_each_kind_is_what_its_paper_says() -> None:
    heard = _heard()
    found = {kind: strangeness(_fitted(kind), heard) for kind in KINDS}
    means = _fitted("prototype").means.numpy()
    exact = heard.embeddings.astype(np.float64)
    distances = np.square(exact[:, None] - means).mean(axis=2).min(axis=1)
    cosines = exact @ means.T / np.linalg.norm(exact, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(found["prototype"], distances, rtol=1e-5)
    np.testing.assert_allclose(found["cosine"], 1 - cosines.max(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["energy"], -logsumexp(heard.logits, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["max_logit"], -heard.logits.max(axis=1))
    likeliest = softmax(heard.logits.astype(np.float64), axis=1).max(axis=1)
    np.testing.assert_allclose(found["max_softmax"], -np.log(likeliest), rtol=1e-3, atol=1e-5)


def test_the_mahalanobis_distance_is_that_of_the_common_covariance() -> None:
    score, heard = _fitted("mahalanobis"), _heard()
    inverse = score.whitening.numpy().astype(np.float64)
    precision = inverse.T @ inverse
    offsets = heard.embeddings[:, None].astype(np.float64) - score.means.numpy()
    expected = np.einsum("nld,de,nle->nl", offsets, precision, offsets).min(axis=1) / 6
    np.testing.assert_allclose(strangeness(score, heard), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_far_off_and_unsure_is_stranger_to_every_kind(kind: UnknownKind) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 3
    centres = 5.0 * np.eye(3, 8)
    near = (centres[labels] + 0.5 * rng.standard_normal((200, 8))).astype(np.float32)
    score = UnknownScore(kind, 8, 3)
    score.fit(near, labels)
    known = Heard(10 * np.eye(3, dtype=np.float32)[labels], near)
    strange = Heard(np.zeros((20, 3), np.float32), (8 * np.eye(8)[5] + rng.standard_normal((20, 8))).astype(np.float32))
    assert auroc(strangeness(score, known), strangeness(score, strange)) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_scores_the_same_bits_in_any_batch(kind: UnknownKind) -> None:
    score, heard = _fitted(kind, 96), _heard(32, 96)
    whole = strangeness(score, heard)
    for size in (1, 2, 4, 8, 16):
        for start in range(0, 32, size):
            part = slice(start, start + size)
            found = strangeness(score, Heard(heard.logits[part], heard.embeddings[part]))
            np.testing.assert_array_equal(found, whole[part])


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundles_kind_decides_in_the_engine(kind: UnknownKind, tmp_path: Path) -> None:
    dims = EcapaDims(channels=16, mfa_channels=16, attention=8, embedding=8, se_bottleneck=8)
    card = write_untrained_bundle(
        tmp_path / "a", network=dims, front_end=FrontEndSpec(n_mels=20, level="rms"), window_samples=2_048,
        hop_samples=1_024,
    )  # fmt: skip
    other = msgspec.structs.replace(card, unknown=UnknownRule(kind, 0.5), temperature=3.0)
    write_bundle(tmp_path / "b", other, load_weights(tmp_path / "a"))
    engine = Engine(tmp_path / "b", device="cpu", threads=1)
    windows = list(labelled_windows(5).windows)
    found = engine.infer(windows)
    score = UnknownScore(kind, 8, 5)
    score.load_state_dict(engine._model.unknown.state_dict())
    with torch.inference_mode():
        logits = engine._model.head(torch.from_numpy(found.embeddings))
    expected = strangeness(score, Heard(logits.numpy(), found.embeddings))
    np.testing.assert_allclose(found.unknown_scores, expected, rtol=1e-5, atol=1e-6)
    alone = engine.infer(windows[3:4])
    np.testing.assert_array_equal(alone.unknown_scores, found.unknown_scores[3:4])


def test_a_kind_that_this_program_does_not_know_is_refused(tmp_path: Path) -> None:
    write_untrained_bundle(tmp_path / "a", network=EcapaDims(channels=16, mfa_channels=16))
    path = tmp_path / "a" / "model.json"
    path.write_text(path.read_text().replace('"mahalanobis"', '"astrology"'))
    with pytest.raises(BundleError, match="astrology"):
        read_card(tmp_path / "a")


def test_auroc_is_that_of_scikit_learn_with_ties() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    known, strange = rng.integers(0, 10, 200), rng.integers(3, 13, 90)
    expected = metrics.roc_auc_score(np.r_[np.zeros(200), np.ones(90)], np.r_[known, strange])
    assert auroc(known, strange) == pytest.approx(expected)
    assert auroc(np.zeros(3), np.ones(2)) == 1.0
    assert auroc(np.ones(3), np.zeros(2)) == 0.0
    assert auroc(np.ones(3), np.ones(2)) == 0.5
    with pytest.raises(ValueError, match="3 known and 0 strange"):
        auroc(np.ones(3), np.array([]))


def test_a_set_without_a_label_has_never_heard_of_it() -> None:
    windows = labelled_windows(30)
    left = without(windows, 1)
    assert (left.label_names, left.counts) == (("click", "tone"), {"click": 10, "tone": 10})
    np.testing.assert_array_equal(left.windows, windows.windows[windows.labels != 1])
    assert only(windows, 1).counts == {"hiss": 10}


def test_each_label_is_left_out_once_and_the_best_kind_is_found() -> None:
    trained: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def train_and_embed(train: WindowSet, validation: WindowSet, parts: Sequence[WindowSet]) -> list[Heard]:
        trained.append((train.label_names, validation.label_names))
        assert [part.label_names for part in parts[:2]] == [train.label_names] * 2
        heard = []
        for part in parts:
            strange = part.label_names[0] not in train.label_names
            rng = np.random.default_rng(len(part))
            # The embedding tells; the logits are as large for what is strange.
            centres = np.full((len(part), 4), 9.0) if strange else 5.0 * np.eye(2, 4)[part.labels]
            heard.append(
                Heard(
                    rng.standard_normal((len(part), 2)).astype(np.float32),
                    (centres + rng.standard_normal((len(part), 4))).astype(np.float32),
                )
            )
        return heard

    told: list[str] = []
    data = [labelled_windows(count, seed=count) for count in (60, 30, 45)]
    found = leave_one_class_out(*data, train_and_embed, on_label=told.append)
    assert told == list(LABELS) == list(found.left_out)
    assert trained[1] == (("click", "tone"), ("click", "tone"))
    assert found.auroc.shape == (len(KINDS), 3)
    assert found.best in ("mahalanobis", "prototype")
    assert found.auroc[found.kinds.index("prototype")].min() > 0.99
    assert abs(found.auroc[found.kinds.index("energy")].mean() - 0.5) < 0.25
    text = found.table()
    assert text.splitlines()[0] == "| unknown score | click | hiss | tone | mean | smallest |"
    assert text.splitlines()[2].startswith(f"| {found.best} |")


def test_of_two_labels_none_can_be_left_out() -> None:
    two = without(labelled_windows(30), 0)
    with pytest.raises(ValueError, match="it takes three"):
        leave_one_class_out(two, two, two, lambda *parts: [])
