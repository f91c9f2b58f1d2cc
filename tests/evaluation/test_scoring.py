"""Metrics, neighbours, logistic regression and probe training, judged by scikit-learn and loops."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from amdim_fast.evaluation.logistic import PENALTY, logistic_regression
from amdim_fast.evaluation.metrics import confusion_counts, top_k_accuracy
from amdim_fast.evaluation.neighbours import Neighbours, nearest, vote
from amdim_fast.evaluation.probe_training import SCHEDULES, ProbeSchedule, train_probes


def blobs(count, classes=3, width=5, spread=1.5, seed=0):
    """Features around a centre a class, and labels in random order."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_scikit_learns(k):
    scores, labels = torch.randn(101, 7), torch.randint(7, (101,))
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    assert top_k_accuracy(scores, labels, k) == pytest.approx(expected, abs=1e-12)
    assert top_k_accuracy(scores, (labels + 1) % 7, k) != pytest.approx(expected, abs=1e-12)


def test_top_k_edges():
    labels = torch.tensor([0, 1, 2, 3])
    assert top_k_accuracy(torch.zeros(4, 4), labels, 1) == 0.25
    assert top_k_accuracy(torch.zeros(4, 4), labels, 2) == 0.5
    assert top_k_accuracy(torch.randn(4, 4), labels, 5) == 1.0
    one = torch.zeros(1, 1)
    assert top_k_accuracy(one, torch.tensor([0]), 1) == 1.0


def test_confusion_is_scikit_learns():
    labels, predicted = torch.randint(5, (200,)), torch.randint(4, (200,))
    counts = confusion_counts(predicted, labels, 6)
    expected = confusion_matrix(labels, predicted, labels=range(6))
    np.testing.assert_array_equal(counts.numpy(), expected)
    assert not np.array_equal(confusion_counts(labels, predicted, 6).numpy(), expected)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (50, 1.0), (120, 0.3)])
def test_neighbours_vote_as_scikit_learns_do(k, temperature, monkeypatch):
    bank, labels = blobs(120)
    queries, truth = blobs(37, seed=1)
    judge = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank.double(), labels)
    expected = judge.predict_proba(queries.double())
    # A few rows at a time, the last part smaller.
    monkeypatch.setattr("amdim_fast.evaluation.neighbours._SIMILARITIES_AT_ONCE", 5 * 120 + 3)
    found = nearest(bank.double(), queries.double(), k)
    scores = vote(found, labels, 3, temperature)
    share = (scores / scores.sum(1, keepdim=True)).numpy()
    np.testing.assert_allclose(share, expected, rtol=1e-9, atol=1e-12)
    assert top_k_accuracy(scores, truth, 1) == accuracy_score(
        truth, judge.predict(queries.double())
    )
    single = vote(nearest(bank, queries, k), labels, 3, temperature)
    np.testing.assert_allclose((single / single.sum(1, keepdim=True)).numpy(), expected, atol=1e-4)
    if k > 1:
        planted = vote(found, labels, 3, 2 * temperature)
        planted = (planted / planted.sum(1, keepdim=True)).numpy()
        assert np.abs(planted - expected).max() > 1e-3


def test_neighbours_are_sorted_and_bounded():
    bank, labels = blobs(20)
    similarities, indices = nearest(bank, bank, 20)
    assert (indices[:, 0] == torch.arange(20)).all()
    assert (similarities.diff(dim=1) <= 0).all()
    assert (indices.sort(1).values == torch.arange(20)).all()
    # A tiny temperature neither overflows nor gives NaN: the nearest decides.
    decided = vote(Neighbours(similarities, indices), labels, 3, 1e-6)
    assert decided.isfinite().all()
    assert (decided.argmax(1) == labels).all()
    for k in (0, 21):
        with pytest.raises(ValueError, match=f"k is {k}; it must be from 1 to 20"):
            nearest(bank, bank, k)
    with pytest.raises(ValueError, match="temperature is 0; it must be above 0"):
        vote(Neighbours(similarities, indices), labels, 3, 0)


def scikit_learns_logistic(features, labels, test, penalty=PENALTY):
    """Its probabilities; its scaler divides by the biased deviation."""
    scaler = StandardScaler().fit(features.double())
    shrink = np.sqrt((len(features) - 1) / len(features))
    judge = LogisticRegression(C=1 / (len(features) * penalty), tol=1e-10, max_iter=5000)
    judge.fit(shrink * scaler.transform(features.double()), labels)
    return judge.predict_proba(shrink * scaler.transform(test.double()))


def test_logistic_regression_is_scikit_learns():
    features, labels = blobs(300, spread=3.0)
    test, truth = blobs(90, spread=3.0, seed=1)
    features[:, 4] = test[:, 4] = 3.0  # a constant feature is left out
    given = features[:, :4], labels, test[:, :4]
    expected = scikit_learns_logistic(*given)
    logits = logistic_regression(features, labels, test, 3)
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-5)
    assert top_k_accuracy(logits, truth, 1) == accuracy_score(truth, expected.argmax(1))
    planted = scikit_learns_logistic(*given, penalty=PENALTY / 10)
    assert np.abs(planted - expected).max() > 1e-4


def test_equal_features_of_logistic_regression_share_their_weights():
    features, labels = blobs(300, spread=3.0)
    test, _ = blobs(90, spread=3.0, seed=1)
    # Equal where it trains, not where it is judged.
    features = features[:, [0, 1, 1, 2, 1]]
    test = test[:, [0, 1, 2, 2, 3]]
    expected = scikit_learns_logistic(features, labels, test)
    found = logistic_regression(features, labels, test, 3).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = logistic_regression(features[:, [0, 1, 3]], labels, test[:, [0, 1, 3]], 3).softmax(1)
    assert np.abs(alone.numpy() - expected).max() > 1e-3


def test_schedules_are_the_originals():
    assert ProbeSchedule() == ProbeSchedule(120, (80, 110), 2e-4, 200)
    assert (SCHEDULES["imagenet"].epochs, SCHEDULES["imagenet"].milestones) == (30, (15, 25))
    assert (SCHEDULES["places205"].epochs, SCHEDULES["places205"].milestones) == (15, (7, 12))
    half = ProbeSchedule().scaled(60)
    assert (half.epochs, half.milestones) == (60, (40, 55))
    for wrong, message in (
        ({"epochs": 0}, "epochs is 0; it must be a whole number, 1 or more"),
        ({"batch_size": 1}, "batch_size is 1; it must be a whole number, 2 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be above 0"),
        ({"milestones": (0,)}, r"milestones are \(0,\); each must be an epoch"),
    ):
        with pytest.raises(ValueError, match=message):
            ProbeSchedule(**wrong)


def test_linear_probe_follows_a_loop_of_its_own():
    """Three epochs of Adam written out on the linear probe, which the MLP does not touch."""
    features, labels = blobs(50)
    schedule = ProbeSchedule(epochs=3, milestones=(1, 2), learning_rate=0.01, batch_size=20)
    start = train_probes(features, labels, 3, ProbeSchedule(1, (), 1e-30, 20), seed=3)
    found = train_probes(features, labels, 3, schedule, seed=3).block_glb_lin.block_forward[2]
    linear = start.block_glb_lin.block_forward[2]
    values = [linear.weight.detach().double(), linear.bias.detach().double()]
    first = [torch.zeros_like(value) for value in values]
    second = [torch.zeros_like(value) for value in values]
    order, step = torch.Generator().manual_seed(3), 0
    x = features.double()
    for epoch in range(3):
        rate = 0.01 * 0.2**epoch
        permuted = torch.randperm(50, generator=order)
        for index in (permuted[:20], permuted[20:40]):
            step += 1
            leaves = [value.clone().requires_grad_() for value in values]
            logits = x[index] @ leaves[0].T + leaves[1]
            log_prob = (10 * torch.tanh(logits / 10)).log_softmax(1)
            loss = -log_prob[torch.arange(20), labels[index]].mean() + 1e-3 * (logits**2).mean()
            for place, gradient in enumerate(torch.autograd.grad(loss, leaves)):
                gradient = gradient + 1e-5 * values[place]
                first[place] = 0.8 * first[place] + 0.2 * gradient
                second[place] = 0.999 * second[place] + 0.001 * gradient**2
                scale = (second[place] / (1 - 0.999**step)).sqrt() + 1e-8
                values[place] = values[place] - rate * first[place] / (1 - 0.8**step) / scale
    torch.testing.assert_close(found.weight.double(), values[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.bias.double(), values[1], atol=1e-5, rtol=0)
    assert (found.weight.double() - linear.weight.double()).abs().max() > 1e-2


def test_probes_learn_what_is_there_and_nothing_else():
    features, labels = blobs(400, spread=1.0)
    test, truth = blobs(200, spread=1.0, seed=1)
    schedule = ProbeSchedule(epochs=40, milestones=(30,), learning_rate=1e-2)
    state = torch.random.get_rng_state()
    probes = train_probes(features, labels, 3, schedule)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not probes.training
    with torch.no_grad():
        accuracies = [top_k_accuracy(logits, truth, 1) for logits in probes(test)]
    assert min(accuracies) > 0.9
    shuffled = labels[torch.randperm(400)]
    blind = train_probes(features, shuffled, 3, schedule)
    with torch.no_grad():
        chance = [top_k_accuracy(logits, truth, 1) for logits in blind(test)]
    assert max(chance) < 0.55
    again = train_probes(features, labels, 3, schedule).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in probes.state_dict().items())


def test_too_few_features_for_probes():
    with pytest.raises(ValueError, match="there are 1 labeled training images; there must be 2"):
        train_probes(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), 2, ProbeSchedule())
    # Fewer than a batch: all of them, every epoch.
    train_probes(torch.randn(3, 4), torch.tensor([0, 1, 0]), 2, ProbeSchedule(epochs=2))
