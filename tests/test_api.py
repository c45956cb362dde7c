"""What a user writes: the examples of the documentation, on the smallest games."""

import csv
import dataclasses
import inspect
import itertools
import json
import textwrap
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarl_tad as jt
from jaxmarl_tad.evaluate import score
from jaxmarl_tad.rollout import episodes

SMALL = {"envs": 8, "total_steps": 64, "episodes": 4, "evaluations": 2}


@pytest.fixture(scope="module")
def sweep():
    """Two games, two fields of two values each, two seeds."""
    games = [jt.make("matrix/climbing"), jt.make("matrix/tad")]
    fields = {"lr": [0.1, 0.2], "entropy_coef": [0.0, 0.5]}
    return jt.run("mappo", games, seeds=[3, 5], **fields, **SMALL)


@pytest.fixture(scope="module")
def teacher():
    return jt.run("tad_ppo", "hallway", seeds=2, **SMALL)


# --- runs -----------------------------------------------------------------------------------------


def test_members_are_ordered_as_they_are_written(sweep):
    expected = [
        {"env": env, "seed": seed, "lr": lr, "entropy_coef": entropy}
        for env in ("matrix/climbing", "matrix/tad")
        for lr in (0.1, 0.2)
        for entropy in (0.0, 0.5)
        for seed in (3, 5)
    ]
    assert sweep.members == expected


def test_results_are_numpy(sweep):
    assert sweep.name == "mappo"
    assert {"return", "length", "entropy", "ratio"} <= set(sweep.curves)
    for name, curve in sweep.curves.items():
        assert type(curve) is np.ndarray
        assert curve.shape == (16, 2)
        assert curve.dtype == np.float32, name
        assert np.isfinite(curve).all()
        np.testing.assert_array_equal(sweep.final[name], curve[:, -1])
    assert sweep.steps.tolist() == [32, 64]
    assert all(leaf.shape[0] == 16 for leaf in jax.tree.leaves(sweep.state))
    assert set(sweep.timing) >= {"trace_s", "compile_s", "run_s", "wall_s", "peak_bytes"}


def test_seeds_are_a_number_or_values():
    few = [jt.run("mappo", "matrix/climbing", seeds=s, **SMALL) for s in (3, [2, 0, 1], (0,))]
    assert [m["seed"] for m in few[0].members] == [0, 1, 2]
    assert [m["seed"] for m in few[1].members] == [2, 0, 1]
    assert [m["seed"] for m in few[2].members] == [0]
    np.testing.assert_allclose(
        few[0].curves["entropy"], few[1].curves["entropy"][[1, 2, 0]], rtol=1e-4, atol=1e-5
    )


def test_a_tuple_is_one_value():
    run = jt.run("mappo", "matrix/climbing", initial_logits=(0.0, 0.0, 9.0), lr=0.0, **SMALL)
    assert run.members == [{"env": "matrix/climbing", "seed": 0}]
    np.testing.assert_allclose(run.final["return"], 5.0)  # both take the action that was preferred


def test_fields_of_one_game():
    games = [("matrix/climbing", {"lr": 0.0}), ("matrix/climbing", {"lr": 0.5})]
    run = jt.run("mappo", games, **SMALL)
    assert [m["env"] for m in run.members] == ["matrix/climbing"] * 2
    np.testing.assert_allclose(run.stacked.config.lr, [0.0, 0.5])


def test_a_config_is_a_start_and_keywords_win():
    config = jt.config("mappo")(lr=0.25, envs=8, total_steps=64, gamma=0.5)
    run = jt.run("mappo", "matrix/climbing", config=config, gamma=0.75, evaluations=1, episodes=2)
    assert (run.config.lr, run.config.gamma, run.config.envs) == (0.25, 0.75, 8)
    assert run.config.critic == "state"
    assert run.config.network == "table"  # resolved
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0


def test_the_budget_is_rounded_to_whole_chunks():
    run = jt.run("mappo", "matrix/climbing", envs=8, total_steps=50, evaluations=4, episodes=2)
    assert run.steps.tolist() == [16, 32, 48, 64]
    short = jt.run("mappo", "matrix/climbing", envs=8, total_steps=1, evaluations=4, episodes=2)
    assert short.steps.tolist() == [8]


def test_best_is_the_highest_return_and_the_first_of_equals(sweep):
    returns = np.asarray([1.0, 3.0, 3.0, 2.0] * 4, np.float32)
    tied = dataclasses.replace(sweep, curves={"return": returns[:, None]})
    assert_same_policy(tied.best(), sweep.policy(1))


def assert_same_policy(one, other):
    seen = jt.make("matrix/climbing").reset(jax.random.key(0))[1]
    logs = [p.act(jax.random.key(1), p.start(), seen)[2]["log_probs"] for p in (one, other)]
    np.testing.assert_array_equal(*logs)


def test_after_chunk_is_called_once_per_evaluation():
    seen = []
    run = jt.run(
        "mappo",
        "matrix/climbing",
        after_chunk=lambda i, state, metrics: seen.append((i, metrics["return"])),
        **SMALL,
    )
    assert [i for i, _ in seen] == [0, 1]
    np.testing.assert_array_equal(np.stack([r for _, r in seen], axis=1), run.curves["return"])


def test_progress_is_one_line_on_a_terminal_and_ten_elsewhere(capsys, monkeypatch):
    more = SMALL | {"total_steps": 160, "evaluations": 20}
    jt.run("mappo", "matrix/climbing", progress=True, **more)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    for word in ("mappo", "1 members", "100 %", "steps/s", "compiled in", "s left", "return"):
        assert word in lines[-1]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    jt.run("mappo", "matrix/climbing", progress=True, **SMALL)
    written = capsys.readouterr().err
    assert (written.count("\n"), written.count("\r")) == (1, 2)
    jt.run("mappo", "matrix/climbing", progress=False, **SMALL)
    assert capsys.readouterr().err == ""


# --- policies -------------------------------------------------------------------------------------


def test_a_policy_in_ones_own_loop_earns_what_evaluate_says(teacher):
    env = jt.make("hallway")
    for member in (0, 1, -1):
        policy = teacher.policy(member)
        state, seen = env.reset(jax.random.key(0))
        memory, total, over = policy.start(), 0.0, False
        while not over:
            action, memory, _ = policy.act(jax.random.key(1), memory, seen)
            state, step = env.step(jax.random.key(2), state, action)
            seen, over = step.observation, bool(step.terminated | step.truncated)
            total += float(step.reward)
        # A greedy policy in a game without chance: every episode is the same.
        assert jt.evaluate(policy, env, episodes=3)["return"] == pytest.approx([total])
        assert teacher.final["return"][member] == pytest.approx(total)
        assert jt.evaluate(teacher, env, episodes=3)["return"][member] == pytest.approx(total)


def test_evaluate_tells_of_every_member(teacher):
    scores = jt.evaluate(teacher, "hallway", episodes=4)
    assert {name: x.shape for name, x in scores.items()} == {"return": (2,), "length": (2,)}
    assert all(type(x) is np.ndarray for x in scores.values())
    alone = jt.evaluate(teacher.policy(0, greedy=False), "hallway", episodes=4, seed=1)
    assert alone["return"].shape == (1,)


def test_what_is_evaluated_may_last_longer_than_what_was_learned():
    run = jt.run("iql", "coordsum/horizon=2", seeds=2, **SMALL)
    scores = jt.evaluate(run, "coordsum/horizon=5", episodes=4)
    assert scores["length"].tolist() == [5, 5]
    with pytest.raises(ValueError, match=r"n_agents=2 and not 3"):
        jt.evaluate(run, "coordsum/horizon=5/n_agents=2")


def test_distil(teacher):
    student = jt.distill(teacher, "hallway", envs=8, total_steps=640, episodes=4, evaluations=2)
    assert student.name == "distill(tad_ppo)"
    assert student.members == teacher.members
    assert {"return", "agreement", "kl", "teacher_return", "retention"} <= set(student.final)
    np.testing.assert_array_equal(student.final["teacher_return"], teacher.final["return"])
    np.testing.assert_allclose(student.final["return"], teacher.final["return"])
    np.testing.assert_allclose(student.final["agreement"], 1.0)
    assert student.policy().execution == "decentralised"
    assert teacher.policy().execution == "centralised"


def test_distil_one_policy(teacher):
    student = jt.distill(teacher.best(), "hallway", envs=8, total_steps=320, episodes=4, evaluations=1)
    assert len(student.members) == 1
    assert jt.evaluate(student, "hallway", episodes=2)["return"].shape == (1,)


# --- files ----------------------------------------------------------------------------------------


def test_save_writes_what_can_be_read_back(sweep, tmp_path):
    folder = sweep.save(tmp_path / "deep" / "run")
    about = json.loads((folder / "config.json").read_text())
    assert about["algorithm"] == "mappo"
    assert about["config"]["critic"] == "state"
    assert about["config"]["envs"] == 8
    assert about["config"]["network"] == "table"
    assert about["versions"]["jax"] == jax.__version__
    with np.load(folder / "metrics.npz") as metrics:
        assert set(metrics.files) == {"steps", *sweep.curves}
        np.testing.assert_array_equal(metrics["return"], sweep.curves["return"])
    with open(folder / "members.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["member"]) for row in rows] == list(range(16))
    for row, member in zip(rows, sweep.members, strict=True):
        assert {k: type(v)(row[k]) for k, v in member.items()} == member
    with open(folder / "curves.csv", newline="") as file:
        curves = list(csv.DictReader(file))
    assert len(curves) == 16 * 2 * len(sweep.curves)
    (value,) = (
        float(row["value"])
        for row in curves
        if (row["member"], row["step"], row["metric"]) == ("7", "64", "return")
    )
    assert value == pytest.approx(sweep.final["return"][7], rel=1e-5)


# --- the pure layer -------------------------------------------------------------------------------


def test_own_transforms():
    env, method = jt.make("matrix/climbing"), jt.algorithm("mappo")
    config = method.resolved(method.settings(envs=8, total_steps=64), env.spec)
    algorithm = method.make(config, env)

    @jax.jit
    @jax.vmap
    def whole(key):
        return jt.train(
            algorithm,
            lambda policy, key: score(env, policy, key, 4),
            key,
            iterations=8,
            evaluations=2,
        )

    state, curves = whole(jax.vmap(jax.random.key)(jnp.arange(3)))
    assert curves["return"].shape == (3, 2)
    policy = algorithm.policy(jax.tree.map(lambda x: x[1], state), greedy=True)
    seen = episodes(env, policy, jax.random.key(0), 2, env.spec.horizon)
    np.testing.assert_allclose(seen.transition.reward.sum(0), curves["return"][1, -1])
    run = jt.run("mappo", env, seeds=3, **SMALL)
    np.testing.assert_allclose(run.curves["entropy"], curves["entropy"], rtol=1e-4, atol=1e-5)


def test_the_lists():
    assert jt.algorithms() == sorted(jt.algorithms())
    assert {"ippo", "mappo", "tad_ppo"} <= set(jt.algorithms())
    assert {"hallway", "matrix/climbing"} <= set(jt.environments())
    assert jt.make("matrix/climbing").name == "matrix/climbing"
    assert isinstance(jt.make("hallway", length=3), jt.Environment)
    assert jt.solve(jt.make("matrix/climbing")).value == 11.0


@pytest.mark.parametrize("name", jt.__all__)
def test_what_is_public_is_described(name):
    thing = getattr(jt, name)
    assert inspect.getdoc(thing)
    if not inspect.isfunction(thing):
        return
    assert len(inspect.getdoc(thing).splitlines()[0]) > 10
    signature = inspect.signature(thing)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter
    typing.get_type_hints(thing)


def test_all_is_what_there_is():
    assert jt.__all__ == sorted(jt.__all__)
    assert len(set(jt.__all__)) == len(jt.__all__)


@pytest.mark.parametrize("name", ["algorithm", "train", "sweep"])
def test_examples_of_the_pure_layer_run(name):
    text = inspect.getdoc(getattr(jt, name)).split("::\n\n", 1)[1]
    lines = itertools.takewhile(lambda line: not line or line.startswith(" "), text.splitlines())
    scope = {"jt": jt, "jax": jax}
    exec(textwrap.dedent("\n".join(lines)), scope)
    if name == "algorithm":
        assert scope["policy"].execution == "decentralised"
    else:
        assert scope["curves"]["return"].shape == ((8, 2) if name == "train" else (16, 2))


def test_a_sweep_of_the_pure_layer_is_the_run():
    job = jt.prepare("ippo", "matrix/climbing", seeds=3, **SMALL)

    def whole_run(member):
        learner = jt.algorithm("ippo").make(member.config, member.source)
        key = jax.random.key(member.seed)
        evaluate = lambda policy, key: jt.score(member.env, policy, key, 4)  # noqa: E731
        plan = job.plan
        return jt.train(
            learner, evaluate, key, iterations=plan.iterations, evaluations=plan.evaluations
        )

    _, curves = jt.sweep(whole_run, job.stacked)
    run = jt.run("ippo", "matrix/climbing", seeds=3, **SMALL)
    for name, values in run.curves.items():
        np.testing.assert_allclose(curves[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_cheap_generator_learns_alike():
    runs = [jt.run("ippo", "matrix/tad", seeds=16, prng=prng) for prng in ("threefry", "hash")]
    assert [run.plan.prng for run in runs] == ["threefry", "hash"]
    for run in runs:
        assert np.mean(run.final["return"] == 5.0) > 0.8
    assert not np.array_equal(runs[0].curves["entropy"], runs[1].curves["entropy"])
