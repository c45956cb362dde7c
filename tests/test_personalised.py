"""PTDE: what agents are told of the state, against its equations; and students of it."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmarl_tad as jt
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.networks import personalised
from jaxmarl_tad.networks.net import network
from jaxmarl_tad.networks.personalised import FLOOR, MOST, Seen
from jaxmarl_tad.sharing import sharing
from jaxmarl_tad.statistics import ratio_curve, stratified_bootstrap

SPEC = jt.make("relay/n_agents=3/names=1").spec
INPUTS, SIZE, HIDDEN = 5, 6, 7
DEFAULTS = {
    "information": "personalised",
    "z_size": SIZE,
    "z_source": "observation",
    "z_rank": None,
    "hidden": (HIDDEN,),
}


def told(mode="full_id", **fields):
    """An informant of agents with ``INPUTS`` inputs, its parameters, and what three agents see."""
    config = SimpleNamespace(**DEFAULTS | fields)
    share = sharing(mode, SPEC.n_agents)
    informant = personalised.informant(config, SPEC, share, INPUTS)
    draw = np.random.default_rng(0)
    drawn = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    seen = Seen(drawn(4, 2, SPEC.n_agents, INPUTS), drawn(4, 2, SPEC.state_dim))
    swift = informant._replace(tell=jax.jit(informant.tell), inform=jax.jit(informant.inform))
    return swift, jax.jit(informant.init)(jax.random.key(0)), seen


def slow(params, state, x):
    """Equations 1 to 3 for one agent at one step."""
    lin = lambda name, v: v @ np.asarray(name["kernel"], float) + np.asarray(name["bias"], float)  # noqa: E731
    if "rank" in params:
        state = lin(params["rank"], state)
    if "encoder" in params:
        e = lin(params["encoder"], state)
    else:
        flat = lin(params["weights"], np.maximum(lin(params["hidden"], x), 0))
        weights = flat.reshape(len(state), SIZE)
        e = lin(params["offset"], x)
        for s in range(len(state)):
            e = e + state[s] * weights[s]
        e = np.where(e > 0, e, np.expm1(np.minimum(e, 0)))
    if "mean" not in params:
        return e, np.zeros(SIZE)
    leaky = lambda v: np.where(v > 0, v, 0.01 * v)  # noqa: E731
    heads = [lin(params[n]["out"], leaky(lin(params[n]["layer"], e))) for n in ("mean", "log_variance")]
    return heads[0], np.clip(np.exp(heads[1]), FLOOR, MOST)


@pytest.mark.parametrize("mode", ["full_id", "none"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"information": "unified"}, {"information": "guided"}, {"z_rank": 2}],
    ids=lambda f: "-".join(map(str, f.values())) or "personalised",
)
def test_what_agents_are_told_equals_the_equations(fields, mode):
    informant, params, seen = told(mode, **fields)
    z = informant.tell(params, seen, ())
    assert z.mean.shape == z.variance.shape == (4, 2, SPEC.n_agents, SIZE)
    for t, b, i in np.ndindex(4, 2, SPEC.n_agents):
        sets = params["encoder"]
        if fields.get("information") != "unified":
            own = i if mode == "none" else 0
            sets = jax.tree.map(lambda w, own=own: w[own], sets)
        mean, variance = slow(sets, np.asarray(seen.state[t, b], float), np.asarray(seen.rows[t, b, i]))
        np.testing.assert_allclose(z.mean[t, b, i], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(z.variance[t, b, i], variance, rtol=1e-4, atol=1e-6)

    # z = μ + √v ε, and what an agent hears of it is z_i B.
    noise = jnp.asarray(np.random.default_rng(1).normal(size=z.mean.shape), jnp.float32)
    outputs = jnp.ones((4, 2, SPEC.n_agents, SPEC.n_actions))
    got, mean = informant.inform(params, outputs, seen, (), noise)
    expected = np.asarray(z.mean) + np.sqrt(np.asarray(z.variance)) * np.asarray(noise)
    out = np.broadcast_to(params["out"], (SPEC.n_agents, SIZE, SPEC.n_actions))
    np.testing.assert_allclose(
        got, 1 + np.einsum("tbnz,nza->tbna", expected, out), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(mean, z.mean)
    still = informant.inform(params, outputs, seen, (), None)[0][0, 0]
    np.testing.assert_allclose(still, 1 + informant.heard(params, mean[0, 0]), rtol=1e-6)


def test_what_is_personal_changes_with_what_its_agent_sees_and_with_nobody_elses():
    for source in personalised.Source.__args__:
        informant, params, seen = told(z_source=source)
        wide = HIDDEN if source == "trajectory" else INPUTS
        memory = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, SPEC.n_agents, wide)))
        look = functools.partial(informant.tell, params)
        before = look(seen, memory).mean
        fed = memory if source == "trajectory" else seen.rows
        for agent in range(SPEC.n_agents):
            moved = fed.at[..., agent, :].add(1.0)
            args = (seen, moved) if source == "trajectory" else (seen._replace(rows=moved), memory)
            same = np.all(np.asarray(look(*args).mean == before), axis=(0, 1, 3))
            np.testing.assert_array_equal(same, np.arange(SPEC.n_agents) != agent)
        # Of the other input it is no function.
        if source == "trajectory":
            again = look(seen._replace(rows=seen.rows + 1), memory)
        else:
            again = look(seen, memory + 1)
        np.testing.assert_array_equal(again.mean, before)
        assert not np.any(look(seen._replace(state=seen.state + 1), memory).mean == before)


@pytest.mark.parametrize("mode", ["full", "full_id", "none"])
def test_unified_information_has_one_distribution(mode):
    informant, params, seen = told(mode, information="unified")
    z = informant.tell(params, seen, ())
    for part in z:
        np.testing.assert_array_equal(part, np.broadcast_to(part[..., :1, :], part.shape))
    other = informant.tell(params, seen._replace(rows=seen.rows * 3), ())
    np.testing.assert_array_equal(other.mean, z.mean)
    # Of which every agent draws its own sample.
    noise = jax.random.normal(jax.random.key(0), z.mean.shape)
    outputs = informant.inform(params, jnp.zeros((4, 2, 3, SPEC.n_actions)), seen, (), noise)[0]
    assert not np.any(outputs[..., 0, :] == outputs[..., 1, :])


def test_the_variance_has_bounds_beyond_which_nothing_is_learned():
    informant, params, seen = told()
    low = jax.tree.map(jnp.copy, params)
    low["encoder"]["log_variance"]["out"]["bias"] -= 100.0

    def total(params, noise):
        return informant.inform(params, jnp.zeros((4, 2, 3, SPEC.n_actions)), seen, (), noise)[0].sum()

    noise = jax.random.normal(jax.random.key(0), (4, 2, 3, SIZE))
    assert np.all(np.asarray(informant.tell(low, seen, ()).variance) == np.float32(FLOOR))
    slope = jax.jit(jax.grad(total))
    flat = slope(low, noise)["encoder"]
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(flat["log_variance"]))
    # Above it everything is learned, and what is not drawn does not reach the variance.
    slopes = slope(params, noise)["encoder"]
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(slopes))
    still = slope(params, None)["encoder"]
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(still["log_variance"]))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(still["weights"]))
    # A variance beyond all numbers is the largest one, and its slopes are numbers.
    high = jax.tree.map(jnp.copy, params)
    high["encoder"]["log_variance"]["out"]["bias"] += 1e3
    np.testing.assert_allclose(informant.tell(high, seen, ()).variance, MOST, rtol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope(high, noise)))


@pytest.mark.parametrize(
    ("method", "fields", "sentence"),
    [
        ("qmix_gip", {"network": "table"}, "network='mlp'"),
        ("mappo_gip", {"z_source": "trajectory"}, "memory='gru'"),
        ("vdn_giu", {"z_size": 0}, "z_size=0"),
        ("qmix", {"information": "unified"}, "another method"),
        ("mappo", {"information": "personalised"}, "another method"),
    ],
)
def test_impossible_settings_are_refused(method, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jt.prepare(method, "relay", **fields)


def test_agents_of_weighted_qmix_are_told_nothing():
    config = METHODS["ow_qmix"].config
    with pytest.raises(ValueError, match="weighted QMIX"):
        config(information="unified", weighting="central")


def test_defaults_follow_from_what_agents_are_told():
    spec = jt.make("relay").spec
    played = [name for name, row in METHODS.items() if row.family in ("policy", "value")]
    resolved = {name: METHODS[name].resolved(METHODS[name].settings(), spec) for name in played}
    for name in ("vdn_giu", "vdn_gip", "qmix_giu", "qmix_gip", "qplex_gip", "csrl"):
        assert resolved[name].lam == 0.6
        assert resolved[name].double
        assert METHODS[name].execution == "centralised"
    assert resolved["qmix"].lam == resolved["vdn"].lam == 0.0
    assert resolved["qmix"].network == "table"


# --- students -------------------------------------------------------------------------------------

SMALL = {"envs": 8, "episodes": 8, "hidden": (8,), "memory": "gru"}
SETTINGS = {"epochs": 1, "total_steps": 64, "evaluations": 2, "z_size": 5, "z_rank": 4}


@functools.cache
def teacher():
    """MAPPO whose actors are told by what they have seen, through a map of the state of rank 4."""
    return jt.run("mappo_gip", "relay", seeds=2, z_source="trajectory", **SETTINGS, **SMALL)


@functools.cache
def taught():
    """Its students, and its state before they learned."""
    before = jax.device_get(teacher().state)
    return jt.distill(teacher(), evaluations=2, total_steps=64, **SMALL), before


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_what_was_drawn_is_recorded_so_that_the_first_ratio_is_one():
    np.testing.assert_allclose(teacher().curves["ratio"], 1.0, rtol=0, atol=1e-6)
    # Drawn anew it would not be: told with other noise, the same agents act otherwise.
    policy = teacher().policy(greedy=False)
    env = jt.make("relay")
    seen = env.reset(jax.random.key(0))[1]
    told = [policy.act(jax.random.key(k), policy.start(), seen)[2] for k in (0, 1)]
    assert not np.any(told[0]["noise"] == told[1]["noise"])
    np.testing.assert_array_equal(told[0]["z"], told[1]["z"])
    assert not np.all(told[0]["log_probs"] == told[1]["log_probs"])


def test_distillation_leaves_the_teacher_as_it_is():
    student, before = taught()
    assert same_bits(before, teacher().state)
    assert same_bits(before, student.stacked.source.state)
    assert not same_bits(student.state.params, jt.distill(teacher(), seed=1, evaluations=2,
        total_steps=64, **SMALL).state.params)  # fmt: skip
    assert set(student.state.params._asdict()) == {"actor"}


def test_students_fit_the_mean_and_nothing_else():
    """The teacher's variance, which its greedy policy does not draw from, has no influence."""
    student, before = taught()
    actor = jax.tree.map(lambda x: x, before.params.actor)
    actor["told"]["encoder"]["log_variance"]["out"]["bias"] = (
        actor["told"]["encoder"]["log_variance"]["out"]["bias"] + 3.0
    )
    state = before._replace(params=before.params._replace(actor=actor))
    noisy = dataclasses.replace(teacher(), state=state)
    again = jt.distill(noisy, evaluations=2, total_steps=64, **SMALL)
    assert same_bits(student.state.params, again.state.params)


def test_a_student_sees_its_own_history_alone():
    student, _ = taught()
    policy, env = student.policy(), jt.make("relay/delay=1")
    assert policy.execution == "decentralised"

    @jax.jit
    def play(changed, agent):
        """Three steps; from ``changed`` on everything but the rows of ``agent`` is another's."""
        state, seen = env.reset(jax.random.key(3))
        memory, told = policy.start(), []
        for t in range(3):
            own = jnp.arange(env.spec.n_agents) == agent
            rows = jnp.where(own[:, None], seen.agents, jnp.roll(seen.agents, 1, axis=-1))
            other = seen._replace(agents=rows, state=jnp.roll(seen.state, 1), alive=own)
            shown = jax.tree.map(lambda a, b, t=t: jnp.where(t >= changed, a, b), other, seen)
            action, memory, extras = policy.act(jax.random.key(t), memory, shown)
            told.append((action, memory, extras))
            state, step = env.step(jax.random.key(0), state, action)
            seen = step.observation
        return told

    for agent in range(env.spec.n_agents):
        plain, changed = (jax.device_get(play(start, agent)) for start in (9, 0))
        own = lambda tree, agent=agent: jax.tree.map(lambda x: x[agent], tree)  # noqa: E731
        assert same_bits(own(plain), own(changed))
        assert not same_bits(plain, changed)  # the others did see it


def test_the_report_of_a_distillation():
    student, _ = taught()
    final = student.final
    assert {"loss", "agreement", "return", "teacher_return", "retention"} <= set(final)
    assert student.curves["loss"].shape == student.curves["retained"].shape == (2, 2)
    ratio = final["return"].mean() / final["teacher_return"].mean()
    np.testing.assert_allclose(final["retained"], ratio, rtol=1e-6)
    assert np.all(final["retained_low"] <= final["retained"])
    assert np.all(final["retained"] <= final["retained_high"])


def test_the_ratio_of_means_and_its_interval():
    draw = np.random.default_rng(0)
    values, reference = draw.uniform(1, 2, size=(12, 3)), draw.uniform(2, 3, size=(12, 1))
    ratio, low, high = ratio_curve(values, reference, reps=500)
    for point in range(3):

        def mean(rows, p=point):
            rows = rows[0].astype(int)
            return values[rows, p].mean() / reference[rows].mean()

        assert ratio[point] == pytest.approx(mean([np.arange(12)]))
        expected = stratified_bootstrap(np.arange(12), mean, reps=500)
        np.testing.assert_allclose((low[point], high[point]), expected, rtol=1e-12)
    assert np.isnan(ratio_curve(np.ones((2, 1)), np.zeros((2, 1)))[0]).all()


def test_soft_labels_are_refused():
    with pytest.raises(ValueError, match="labels='hard'"):
        jt.distill(teacher(), labels="soft")


def test_the_parameters_of_exported_students_are_all_that_acts(tmp_path):
    """By hand from the file: what the student says, and the teacher's agents hear."""
    student, before = taught()
    folder = jt.export(student, tmp_path / "policy", member=1, formats="safetensors")
    written = load_file(folder / "params.safetensors")
    own = {"params": {}}
    for name, value in written.items():
        *place, last = name.split("/")
        functools.reduce(lambda at, part: at.setdefault(part, {}), place, own)[last] = value
    agents = before.params.actor["own"]["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(own["agents"]["own"]["params"]["Dense_0"]["kernel"], agents[1])
    card = json.loads((folder / "card.json").read_text())
    assert card["artefacts"][1]["agents_sets"] == [0]

    spec = student.spec
    told, agent = (
        network("mlp", inputs=spec.obs_dim + 2, outputs=outputs, hidden=(8,), memory="gru")
        for outputs in (SETTINGS["z_size"], spec.n_actions)
    )
    policy, act = student.policy(1), jax.jit(student.policy(1).act)
    state, seen = jt.make("relay").reset(jax.random.key(5))
    memory, told_memory, agent_memory = policy.start(), [told.start()] * 2, [agent.start()] * 2
    set_0 = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)  # noqa: E731
    for _ in range(2):
        action, memory, extras = act(jax.random.key(0), memory, seen)
        for i in range(2):
            x = jnp.concatenate([seen.agents[i], jnp.eye(2)[i]])
            z, told_memory[i] = told.apply(set_0(own["actor"]), told_memory[i], x)
            q, agent_memory[i] = agent.apply(set_0(own["agents"]["own"]), agent_memory[i], x)
            np.testing.assert_allclose(extras["z"][i], z, rtol=1e-4, atol=1e-6)
            assert int(action[i]) == int(jnp.argmax(q + z @ own["agents"]["heard"][0]))
        state, step = jt.make("relay").step(jax.random.key(0), state, action)
        seen = step.observation


@pytest.mark.slow
def test_students_are_exported_as_they_act(tmp_path):
    student, _ = taught()
    folder = jt.export(student, tmp_path / "policy", member=1)
    policy = student.policy(1)
    seen = jt.make("relay").reset(jax.random.key(5))[1]
    action, _, _ = policy.act(jax.random.key(0), policy.start(), seen)
    for agent in range(2):
        load = jax.export.deserialize((folder / f"agent_{agent}.jax").read_bytes())
        carry = tuple(np.asarray(leaf)[agent][None] for leaf in jax.tree.leaves(policy.start()))
        own, _ = load.call(carry, np.asarray(seen.agents)[agent][None], np.ones((1, 3), bool))
        assert int(own[0]) == int(action[agent])


# --- learning -------------------------------------------------------------------------------------

SEEDS = 16
RELAYS = ("relay", "relay/clue=0.5", "relay/delay=2")
EQUAL = {
    "memory": "gru",
    "total_steps": 3_200,
    "lr": 4e-3,
    "lam": 0.6,
    "updates": 2,
    "epsilon_end": 0.05,
}
"""For those who are told and those who are not."""


@functools.cache
def learned(method):
    games = [jt.make(name) for name in RELAYS]
    told = {} if method == "qmix" else {"z_noise": 0.3}
    fields = {"seeds": SEEDS, "evaluations": 8, "episodes": 128, "progress": False}
    return jt.run(method, games, **fields, **EQUAL, **told)


def interval(values):
    return stratified_bootstrap(values, np.mean)


def of(run, game):
    rows = slice(RELAYS.index(game) * SEEDS, (RELAYS.index(game) + 1) * SEEDS)
    return {name: values[rows] for name, values in run.curves.items()}


@pytest.mark.slow
@pytest.mark.parametrize("game", RELAYS)
def test_who_is_told_earns_more(game):
    """Where the clue tells all, sooner; elsewhere also more than anybody can who is not told."""
    ends, areas = (
        {m: interval(part(of(learned(m), game)["return"])) for m in ("qmix", "qmix_giu", "qmix_gip")}
        for part in (lambda r: r[:, -1], lambda r: r.mean(1))
    )
    for found in (ends, areas):
        assert found["qmix"][1] < found["qmix_gip"][0]
        assert found["qmix_giu"][1] >= found["qmix"][0]
    assert ends["qmix"][0] <= jt.make(game).decentralised_value()
    assert ends["qmix_gip"][0] >= 0.97 * 4


@pytest.mark.slow
def test_students_keep_what_can_be_inferred_and_no_more():
    fields = {"evaluations": 5, "episodes": 1024, "progress": False}
    student = jt.distill(learned("qmix_gip"), memory="gru", **fields)
    whole = of(student, "relay")
    assert whole["retained_low"][0, -1] >= 0.95
    for game in RELAYS:
        low, high = interval(of(student, game)["return"][:, -1])
        ceiling = jt.make(game).decentralised_value()
        assert low <= ceiling
        assert high >= 0.98 * ceiling
