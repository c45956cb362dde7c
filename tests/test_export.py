"""Exported policies: what is written acts as what was trained, and needs nothing of ours to do so."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file

import jaxmarl_tad as jt
from jaxmarl_tad.export import PLATFORMS, export
from jaxmarl_tad.rollout import episodes

SMALL = {"envs": 8, "total_steps": 64, "episodes": 4, "evaluations": 1}
CASES = {
    "table": ("ippo", {}),
    "qmix": ("qmix", {}),
    "teacher": ("tad_ppo", {}),
    "student_gru": ("distill", {"memory": "gru", "sharing": "none", "hidden": (8,)}),
}
MEMBER = 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(case) -> (run, folder)``, each trained and exported once."""
    kept = {}

    def make(case):
        if case not in kept:
            method, fields = CASES[case]
            if method == "distill":
                run = jt.distill(make("teacher")[0], "hallway", **fields, **SMALL)
            else:
                run = jt.run(method, "hallway", seeds=2, **fields, **SMALL)
            folder = tmp_path_factory.mktemp("exports") / case
            kept[case] = run, export(run, folder, member=MEMBER)
        return kept[case]

    return make


def load(folder):
    """``[(artefact, carry of b games), ...]`` as the card says."""
    card = json.loads((folder / "card.json").read_text())

    def start(memory, b):
        return tuple(np.full((b, *m["shape"]), m["start"], m["dtype"]) for m in memory)

    return [
        (
            jax.jit(jax_export.deserialize((folder / part["file"]).read_bytes()).call),
            lambda b, memory=part["memory"]: start(memory, b),
        )
        for part in card["artefacts"]
    ]


def act(parts, carries, seen):
    """Joint actions ``[b, N]`` of all artefacts, from observations ``[b, ...]``."""
    if len(parts) == 1:
        action, carries[0] = parts[0][0](carries[0], *seen)
        return np.asarray(action), carries
    chosen = []
    for i, (call, _) in enumerate(parts):
        action, carries[i] = call(carries[i], seen.agents[:, i], seen.legal[:, i])
        chosen.append(np.asarray(action))
    return np.stack(chosen, axis=1), carries


# --- the artefacts --------------------------------------------------------------------------------


def assert_same_actions(folder, policy):
    """All artefacts, given what the team saw in three episodes, take the actions it took."""
    env = jt.make("hallway")
    seen = jax.jit(lambda: episodes(env, policy, jax.random.key(0), 3, env.spec.horizon))().transition
    parts = load(folder)
    assert len(parts) == (1 if policy.execution == "centralised" else env.spec.n_agents)
    carries = [start(3) for _, start in parts]
    for t in range(env.spec.horizon):
        now = jax.tree.map(lambda x, t=t: np.asarray(x[t]), seen.observation)
        action, carries = act(parts, carries, now)
        np.testing.assert_array_equal(action, seen.action[t])


@pytest.mark.parametrize("case", CASES)
def test_artefacts_act_as_the_policy_does(made, case):
    run, folder = made(case)
    assert_same_actions(folder, run.policy(MEMBER))


@pytest.mark.parametrize(
    ("method", "fields", "inputs"),
    [
        ("ippo", {"network": "mlp"}, ["carry", "observation", "legal"]),
        ("tad_ppo", {"memory": "gru"}, ["carry", "agents", "state", "legal", "alive"]),
    ],
)
def test_a_policy_of_ones_own_training(method, fields, inputs, tmp_path):
    env, method = jt.make("hallway"), jt.algorithm(method)
    config = method.resolved(method.settings(**fields, hidden=(8,), envs=2), env.spec)
    algorithm = method.make(config, env)
    policy = algorithm.policy(jax.jit(algorithm.init)(jax.random.key(0)), greedy=True)
    folder = export(policy, tmp_path / "policy", env=env, formats=("jax",))
    assert_same_actions(folder, policy)
    card = json.loads((folder / "card.json").read_text())
    assert card["execution"] == method.execution
    team = method.execution == "centralised"
    files = ["team.jax"] if team else ["agent_0.jax", "agent_1.jax"]
    assert [part["file"] for part in card["artefacts"]] == card["files"] == files
    assert [part["agents"] for part in card["artefacts"]] == ([[0, 1]] if team else [[0], [1]])
    assert all(list(part["inputs"]) == inputs for part in card["artefacts"])
    assert card["act"] == f"action, carry = act({', '.join(inputs)})"


@pytest.mark.parametrize("case", ["table", "student_gru"])
def test_an_episode_of_separate_artefacts_returns_what_the_team_does(made, case):
    run, folder = made(case)
    env, parts = jt.make("hallway"), load(folder)
    state, seen = env.reset(jax.random.key(0))
    carries, total, over = [start(1) for _, start in parts], 0.0, False
    while not over:
        action, carries = act(parts, carries, jax.tree.map(lambda x: np.asarray(x)[None], seen))
        state, step = env.step(jax.random.key(1), state, jnp.asarray(action[0]))
        seen, over = step.observation, bool(step.terminated | step.truncated)
        total += float(step.reward)
    expected = jt.evaluate(run.policy(MEMBER), env, episodes=1)["return"]
    np.testing.assert_allclose(total, expected[0])


@pytest.mark.parametrize("case", ["student_gru", "teacher"])
def test_a_file_holds_no_random_bits_and_no_trace_of_where_it_was_made(made, case):
    _, folder = made(case)
    for file in folder.glob("*.jax"):
        content = file.read_bytes()
        assert b".py" not in content
        assert str(Path(jt.__file__).parent).encode() not in content
        artefact = jax_export.deserialize(content)
        assert artefact.platforms == PLATFORMS
        assert "threefry" not in artefact.mlir_module()


ALONE = """
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p] + ["packages"]
import importlib.util
for name in ("jaxmarl_tad", "tad_envs", "flax", "optax", "jaxtyping", "safetensors"):
    assert importlib.util.find_spec(name) is None, name
b = 3
import json, os
inputs = json.load(open("inputs.json"))
os.chdir(sys.argv[1])
for line in json.load(open("card.json"))["load"]:
    exec(line)
for observation, legal in zip(*inputs):
    observation, legal = np.asarray(observation, "float32"), np.asarray(legal, bool)
    exec(card["act"])
    print(*np.asarray(action))
"""


def test_an_artefact_runs_where_only_jax_and_flatbuffers_are_installed(made, tmp_path):
    """The card's own recipe, in an interpreter that sees jax, its requirements and flatbuffers."""
    run, folder = made("student_gru")
    env, policy = jt.make("hallway"), run.policy(MEMBER)
    seen = episodes(env, policy, jax.random.key(0), 3, env.spec.horizon).transition
    site = next(Path(p) for p in sys.path if Path(p).name == "site-packages")
    wanted = ["jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers"]
    (tmp_path / "packages").mkdir()
    for name in [*wanted, "numpy.libs", "scipy.libs"]:
        if (site / name).exists():
            (tmp_path / "packages" / name).symlink_to(site / name)
    inputs = [
        np.asarray(x)[:, :, 0].tolist() for x in (seen.observation.agents, seen.observation.legal)
    ]
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    (tmp_path / "alone.py").write_text(ALONE.replace('packages"]', f'{tmp_path}/packages"]'))
    done = subprocess.run(
        [sys.executable, "-I", "-S", tmp_path / "alone.py", str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    printed = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    np.testing.assert_array_equal(printed, seen.action[:, :, 0])


# --- parameters and card --------------------------------------------------------------------------


def test_parameters_have_flat_names_and_the_values_of_the_member(made):
    run, folder = made("student_gru")
    written = load_file(folder / "params.safetensors")
    kernel = run.state.params.actor["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(written["actor/params/Dense_0/kernel"], kernel[MEMBER])
    assert len(written) == len(jax.tree.leaves(run.state.params))
    assert all(value.shape[0] == 2 for name, value in written.items() if name.startswith("actor"))
    table, folder = made("table")
    actor = load_file(folder / "params.safetensors")["actor"]
    np.testing.assert_array_equal(actor, table.state.params.actor[MEMBER])


def test_the_card_tells_what_the_policy_was_made_for(made):
    run, folder = made("student_gru")
    card = json.loads((folder / "card.json").read_text())
    spec = run.spec
    assert (card["algorithm"], card["environment"]) == ("distill(tad_ppo)", "hallway")
    assert card["member"] == run.members[MEMBER]
    assert card["execution"] == "decentralised"
    assert card["spec"]["horizon"] == spec.horizon
    assert (card["observation_length"], card["n_actions"]) == (spec.obs_dim, spec.n_actions)
    assert card["config"]["memory"] == "gru"
    assert card["config"]["total_steps"] == 64
    assert card["config"]["lr"] == 1e-3
    assert card["parameters"]["actor/params/out/bias"] == f"float32[2, {spec.n_actions}]"
    assert [part["agents"] for part in card["artefacts"]] == [[0], [1]]
    assert [part["parameter_sets"] for part in card["artefacts"]] == [[0], [1]]
    assert card["artefacts"][0]["memory"] == [{"shape": [8], "dtype": "float32", "start": 0.0}]
    assert card["artefacts"][0]["inputs"]["observation"] == f"float32[b, {spec.obs_dim}]"
    assert card["versions"]["jax"] == jax.__version__
    files = ["agent_0.jax", "agent_1.jax", "params.safetensors"]
    assert card["files"] == files
    assert sorted(file.name for file in folder.iterdir()) == sorted([*files, "card.json"])


# --- folders and errors ---------------------------------------------------------------------------


def test_an_earlier_export_is_replaced_and_other_files_are_not(made, tmp_path):
    run, _ = made("table")
    folder = export(run, tmp_path / "deep" / "policy", formats="safetensors")
    assert sorted(f.name for f in folder.iterdir()) == ["card.json", "params.safetensors"]
    assert "load" not in json.loads((folder / "card.json").read_text())
    export(run, folder, formats=("jax",))
    names = ["agent_0.jax", "agent_1.jax", "card.json"]
    assert sorted(f.name for f in folder.iterdir()) == names
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt', which is not from an earlier export"):
        export(run, folder)
    assert sorted(f.name for f in folder.iterdir()) == [*names, "notes.txt"]
    assert [f.name for f in folder.parent.iterdir()] == ["policy"]


def test_a_lone_policy_needs_its_game(made, tmp_path):
    run, reference = made("table")
    folder = export(run.policy(MEMBER), tmp_path / "alone", env="hallway", formats=("jax",))
    for name in ("agent_0.jax", "agent_1.jax"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()
    with pytest.raises(ValueError, match="a lone Policy needs an env"):
        export(run.policy(), tmp_path / "other")
    with pytest.raises(ValueError, match="does not tell its parameters"):
        export(run.policy(), tmp_path / "other", env="hallway")
    with pytest.raises(ValueError, match="env is for a lone Policy"):
        export(run, tmp_path / "other", env="hallway")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"formats": ("jaxx",)}, "unknown format 'jaxx'; did you mean 'jax'"),
        ({"formats": ()}, "writes nothing; choose from jax, safetensors"),
        ({"member": 2}, r"member=2 does not exist; this run has members 0\.\.1"),
        ({"path": "a file"}, "is a file; give a folder"),
        ({"path": "a file/policy"}, "cannot be written: "),
    ],
)
def test_errors_say_what_to_change_and_nothing_is_written(made, tmp_path, arguments, sentence):
    run, _ = made("table")
    (tmp_path / "a file").write_text("mine")
    path = tmp_path / arguments.pop("path", "policy")
    with pytest.raises(ValueError, match=sentence):
        export(run, path, **arguments)
    assert [f.name for f in tmp_path.iterdir()] == ["a file"]
