"""Students of hand-made teachers, whose best imitation is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarl_tad as jt

XOR = jt.make("matrix/xor")
LAST = {"evaluations": 1, "episodes": 1}
LN2 = float(np.log(2))


def fresh():
    return ()


def telling(action, log_probs):
    """What a teacher tells: the action's log-probability and the conditionals it was drawn from."""
    chosen = jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0]
    return {"log_prob": chosen, "log_probs": log_probs}


def mixing(key, memory, observation):
    """One of the two optimal joint actions of XOR, each half of the time: a_2 = 1 − a_1."""
    one = jax.random.bernoulli(key).astype(jnp.int32)
    action = jnp.stack([one, 1 - one])
    conditionals = jnp.stack([jnp.full(2, 0.5), jax.nn.one_hot(1 - one, 2)])
    return action, memory, telling(action, jnp.log(jnp.maximum(conditionals, 1e-30)))


def certain(key, memory, observation):
    """Always the first of them."""
    action = jnp.array([0, 1], jnp.int32)
    return action, memory, telling(action, jnp.log(jnp.maximum(jnp.eye(2), 1e-30)))


def wrong(key, memory, observation):
    return jnp.zeros(2, jnp.int32), memory, {}


MIXING, CERTAIN, WRONG = (jt.Policy(fresh, act, "centralised") for act in (mixing, certain, wrong))


def probabilities(student, observation, member=0):
    """Each agent's distribution, ``[N, A]``."""
    policy = student.policy(member, greedy=False)
    return np.exp(policy.act(jax.random.key(0), policy.start(), observation)[2]["log_probs"])


def of_xor(student):
    return probabilities(student, XOR.reset(jax.random.key(0))[1])


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_mixture_of_optima_distils_to_the_product_of_its_marginals(labels):
    # Both marginals are (1/2, 1/2), so that students miss each other half of the time. What is lost is
    # the total correlation: KL(teacher ‖ product) = 2 · ½ log (½ / ¼) = log 2. Reported is, for hard
    # labels, the cross-entropy 2 log 2 of two uniform agents; for soft ones, 0 for the agent who chose
    # first and log 2 for the second, of whom the teacher knew what to do.
    student = jt.distill(
        MIXING, XOR, labels=labels, teacher="sample", envs=256, total_steps=256 * 100, lr=0.01, **LAST
    )
    p = of_xor(student)
    np.testing.assert_allclose(p, 0.5, atol=0.05)
    lost = 0.5 * sum(np.log(0.5 / (p[0, a] * p[1, 1 - a])) for a in (0, 1))
    assert lost == pytest.approx(LN2, abs=0.01)
    assert p[0, 0] * p[1, 1] + p[0, 1] * p[1, 0] == pytest.approx(0.5, abs=0.01)
    episodes = 4096
    sampled = jt.evaluate(student.policy(0, greedy=False), XOR, episodes=episodes)["return"]
    assert sampled[0] == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(episodes) + 0.01)
    final = student.final
    assert final["cross_entropy"][0] == pytest.approx(2 * LN2, abs=0.01)
    assert final["kl"][0] == pytest.approx(LN2 if labels == "soft" else 2 * LN2, abs=0.01)
    assert final["teacher_return"][0] == 1
    # The first agent agrees half of the time, and so does the second.
    assert final["agreement"][0] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("labels", [pytest.param("hard", marks=pytest.mark.slow), "soft"])
def test_a_certain_teacher_is_imitated_without_loss(labels):
    student = jt.distill(CERTAIN, XOR, labels=labels, evaluations=2, episodes=1)
    np.testing.assert_allclose(of_xor(student), np.eye(2), atol=0.05)
    assert student.policy(0).execution == "decentralised"
    for name, value in {"return": 1, "agreement": 1, "retention": 1, "teacher_return": 1}.items():
        assert student.final[name][0] == value, name
    # A deterministic teacher has no entropy: what is reported is the KL, whatever the labels.
    assert student.final["kl"][0] == pytest.approx(student.final["cross_entropy"][0], abs=1e-5)
    p = of_xor(student)
    assert student.final["kl"][0] >= -np.log(p[0, 0]) - np.log(p[1, 1]) - 1e-6 > 0
    assert student.final["kl"][0] < student.curves["kl"][0, 0] < 2 * LN2


def test_retention_of_nothing_is_not_a_number():
    student = jt.distill(WRONG, XOR, total_steps=32 * 100, **LAST)
    assert student.final["teacher_return"][0] == student.final["return"][0] == 0
    assert np.isnan(student.final["retention"][0])


@pytest.mark.slow
def test_a_run_teaches_by_its_most_likely_actions_or_by_drawn_ones():
    # After one iteration a policy is nearly uniform. Its most likely joint action is one action, which
    # students imitate exactly; drawn actions have nearly uniform marginals, of cross-entropy 2 log 2.
    seeds = 8
    teacher = jt.run("ippo", XOR, seeds=seeds, total_steps=32, envs=32, **LAST)
    settings = {"envs": 256, "total_steps": 256 * 50, "lr": 0.02}
    argmax = jt.distill(teacher, **settings, **LAST)
    np.testing.assert_array_equal(argmax.final["return"], teacher.final["return"])
    assert np.all(argmax.final["agreement"] > 0.9)
    drawn = jt.distill(teacher, teacher="sample", **settings, **LAST)
    np.testing.assert_allclose(drawn.final["cross_entropy"], 2 * LN2, atol=0.02)
    observation = XOR.reset(jax.random.key(0))[1]
    for member in range(seeds):
        np.testing.assert_allclose(
            probabilities(drawn, observation, member),
            probabilities(teacher, observation, member),
            atol=0.1,
        )
        greedy = teacher.policy(member)
        action = greedy.act(jax.random.key(0), greedy.start(), observation)[0]
        assert np.all(probabilities(argmax, observation, member)[[0, 1], action] > 0.5)


def stops(key, memory, observation):
    """Stops in cell 0 of the hallway, which ends the episode, but would go forward in cell 1."""
    action = jnp.full((2,), 1 - jnp.argmax(observation.state), jnp.int32)
    return action, memory, {}


@pytest.mark.parametrize("dagger", [False, True])
def test_only_with_dagger_are_cells_labelled_that_the_teacher_does_not_visit(dagger):
    # The teacher's own episodes hold cell 0 alone, so that students know nothing of cell 1: their
    # tables keep their initial values there, of standard deviation 0.01. With DAgger students that
    # still go forward now and then are told what to do there.
    hallway = jt.make("hallway", length=2)
    teacher = jt.Policy(fresh, stops, "decentralised")
    student = jt.distill(
        teacher, hallway, dagger=dagger, envs=256, total_steps=2 * 256 * 100, lr=0.02, **LAST
    )
    at = [hallway.observe(jnp.int32(cell)) for cell in (0, 1)]
    assert np.all(probabilities(student, at[0])[:, 1] > 0.8)
    forward = probabilities(student, at[1])[:, 0]
    if dagger:
        assert np.all(forward > 0.7)
    else:
        np.testing.assert_allclose(forward, 0.5, atol=0.02)
    assert student.final["return"][0] == student.final["teacher_return"][0] == 4


def test_soft_labels_need_probabilities():
    with pytest.raises(ValueError, match=r"labels='soft' needs a teacher .*use labels='hard'"):
        jt.distill(WRONG, XOR, labels="soft")


def test_a_lone_policy_needs_an_environment():
    with pytest.raises(ValueError, match="env"):
        jt.distill(CERTAIN)
