"""What a person who made a mistake is told: one line, with the value, what was due, the nearest choice.

The mistakes are made in a fresh interpreter, as a user would make them: without the checks of
annotations that the other tests run under, and with an eye on whether anything was compiled.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What is written, and what the message must hold (the value and what would have been right).
CASES = {
    # names
    "algorithm misspelt": ("jt.run('mapo', 'hallway')", ["'mapo'", "'mappo'"]),
    "algorithm unlike any": ("jt.run('zzz', 'hallway')", ["'zzz'", "names, such as", "mappo"]),
    "algorithm not a name": ("jt.run(3, 'hallway')", ["3", "name"]),
    "config of a misspelt algorithm": ("jt.config('mapo')", ["'mapo'", "'mappo'"]),
    "environment misspelt": ("jt.run('ippo', 'halway')", ["'halway'", "'hallway'"]),
    "game misspelt": ("jt.make('matrix/climbin')", ["'matrix/climbin'", "'matrix/climbing'"]),
    "generator misspelt": ("jt.run('ippo', 'hallway', prng='hahs')", ["'hahs'", "hash"]),
    "spread over nothing": ("jt.run('ippo', 'hallway', shard='env')", ["'env'", "envs"]),
    "wandb misspelt": ("jt.run('ippo', 'hallway', wandb='on', out='x')", ["'on'", "online"]),
    "wandb without a folder": ("jt.run('ippo', 'hallway', wandb='offline')", ["out=", "folder"]),
    "negative seconds": ("jt.run('ippo', 'hallway', save_seconds=-1)", ["save_seconds", "-1"]),
    "environment not a name": ("jt.run('ippo', 3)", ["int", "name"]),
    "field misspelt": ("jt.run('ippo', 'hallway', gama=0.9)", ["'gama'", "'gamma'"]),
    "swept field misspelt": ("jt.run('ippo', 'hallway', lrr=[0.1])", ["'lrr'", "'lr'"]),
    "field of one game misspelt": (
        "jt.run('ippo', [('hallway', {'entropi_coef': 0.1})])",
        ["'entropi_coef'", "'entropy_coef'"],
    ),
    "field of a game misspelt": ("jt.make('hallway', lenght=3)", ["'lenght'", "'length'"]),
    "field of distillation misspelt": (
        "jt.distill(policy, game, label='soft')",
        ["'label'", "'labels'"],
    ),
    # kinds
    "seeds is a float": ("jt.run('ippo', 'hallway', seeds=4.0)", ["seeds=4.0", "int"]),
    "seeds is a bool": ("jt.run('ippo', 'hallway', seeds=True)", ["seeds=True", "int"]),
    "seeds is text": ("jt.run('ippo', 'hallway', seeds='4')", ["seeds='4'", "int"]),
    "a seed is a float": ("jt.run('ippo', 'hallway', seeds=[0, 1.5])", ["1.5", "int"]),
    "envs is a float": ("jt.run('ippo', 'hallway', envs=8.0)", ["envs=8.0", "int", "8"]),
    "epochs is a float": ("jt.run('ippo', 'hallway', epochs=2.5)", ["epochs=2.5", "int"]),
    "total_steps is a float": (
        "jt.run('ippo', 'hallway', total_steps=1e4)",
        ["total_steps=10000.0", "int", "10000"],
    ),
    "evaluations is a float": (
        "jt.run('ippo', 'hallway', evaluations=2.0)",
        ["evaluations=2.0", "int"],
    ),
    "lr is text": ("jt.run('ippo', 'hallway', lr='0.1')", ["lr='0.1'", "number"]),
    "lr is a tuple": ("jt.run('ippo', 'hallway', lr=(0.1, 0.2))", ["lr=(0.1, 0.2)", "number"]),
    "hidden is an int": ("jt.run('ippo', 'hallway', hidden=64)", ["hidden=64", "tuple"]),
    "hidden holds a float": ("jt.run('ippo', 'hallway', hidden=(64.0,))", ["64.0", "int"]),
    "list for a static field": (
        "jt.run('ippo', 'hallway', memory=['none', 'gru'])",
        ["memory=['none', 'gru']", "once per value"],
    ),
    "list for a size": ("jt.run('ippo', 'hallway', envs=[8, 16])", ["envs=[8, 16]", "once per value"]),
    "config of another method": (
        "jt.run('ippo', 'hallway', config=jt.config('tad_ppo')())",
        ["config('ippo')", "Config"],
    ),
    "config is a dict": ("jt.run('ippo', 'hallway', config={'lr': 0.1})", ["config('ippo')", "dict"]),
    "distillation config is a dict": ("jt.distill(policy, game, config={})", ["config", "dict"]),
    # choices
    "memory unknown": ("jt.run('ippo', 'hallway', memory='lstm')", ["memory='lstm'", "gru", "none"]),
    "sharing unknown": ("jt.run('ippo', 'hallway', sharing='ful')", ["sharing='ful'", "'full'"]),
    "network unknown": ("jt.run('ippo', 'hallway', network='tabel')", ["network='tabel'", "'table'"]),
    "mixer unknown": ("jt.config('qmix')(mixer='qmx')", ["mixer='q", "'qmx'"]),
    "labels unknown": ("jt.distill(policy, game, labels='sof')", ["labels='sof'", "'soft'"]),
    "a table for what is not one-hot": (
        "jt.run('ippo', ticking, network='table')",
        ["network='table'", "one-hot", "network='mlp'"],
    ),
    "a table with memory": (
        "jt.run('ippo', 'hallway', network='table', memory='gru')",
        ["network='table'", "memory='gru'", "network='mlp'"],
    ),
    "what the name fixes": (
        "jt.run('ippo', 'hallway', critic='state')",
        ["ippo", "critic='local'", "critic='state'"],
    ),
    "order is no permutation": (
        "jt.run('tad_ppo', 'hallway', order=(0, 2))",
        ["order=(0, 2)", "permutation", "0..1"],
    ),
    "order is unknown": (
        "jt.run('tad_ppo', 'hallway', order='backwards')",
        ["order='backwards'", "reversed"],
    ),
    # sizes
    "minibatches do not divide": (
        "jt.run('ippo', 'hallway', envs=8, minibatches=3)",
        ["minibatches=3", "envs=8", "divide"],
    ),
    "minibatches of distillation do not divide": (
        "jt.distill(policy, game, envs=8, minibatches=3)",
        ["minibatches=3", "envs=8", "divide"],
    ),
    "envs is zero": ("jt.run('ippo', 'hallway', envs=0)", ["envs=0", "positive"]),
    "epochs is negative": ("jt.run('mappo', 'hallway', epochs=-1)", ["epochs=-1", "positive"]),
    "envs of tad_ppo is zero": ("jt.run('tad_ppo', 'hallway', envs=0)", ["envs=0", "positive"]),
    "batch is zero": ("jt.run('vdn', 'hallway', batch=0)", ["batch=0", "positive"]),
    "steps is zero": ("jt.run('ippo', 'hallway', steps=0)", ["steps=0", "positive"]),
    "steps is negative": ("jt.run('tad_ppo', 'hallway', steps=-4)", ["steps=-4", "positive"]),
    "total_steps is zero": ("jt.run('ippo', 'hallway', total_steps=0)", ["total_steps=0", "positive"]),
    "hidden is empty": ("jt.run('ippo', 'hallway', network='mlp', hidden=())", ["hidden=()"]),
    "hidden is zero": ("jt.run('ippo', 'hallway', network='mlp', hidden=(0,))", ["hidden=(0,)"]),
    "evaluations is zero": ("jt.run('ippo', 'hallway', evaluations=0)", ["evaluations=0", "positive"]),
    "episodes is negative": ("jt.run('ippo', 'hallway', episodes=-1)", ["episodes=-1", "positive"]),
    "seeds is zero": ("jt.run('ippo', 'hallway', seeds=0)", ["seeds=0", "positive"]),
    "seeds is empty": ("jt.run('ippo', 'hallway', seeds=[])", ["seeds=[]"]),
    "a seed is negative": ("jt.run('ippo', 'hallway', seeds=[0, -1])", ["-1"]),
    "a seed is too large": ("jt.run('ippo', 'hallway', seeds=[2**40])", [str(2**40)]),
    "no environment": ("jt.run('ippo', [])", ["env=[]"]),
    "no value to sweep": ("jt.run('ippo', 'hallway', lr=[])", ["lr=[]", "at least one"]),
    # numbers
    "gamma above one": ("jt.run('ippo', 'hallway', gamma=1.5)", ["gamma=1.5", "[0, 1]"]),
    "gamma swept above one": ("jt.run('ippo', 'hallway', gamma=[0.9, 1.5])", ["gamma=1.5", "[0, 1]"]),
    "lr is not a number": ("jt.run('ippo', 'hallway', lr=float('nan'))", ["lr=nan"]),
    "lr is negative": ("jt.run('ippo', 'hallway', lr=-0.1)", ["lr=-0.1"]),
    "initial_logits of another length": (
        "jt.run('ippo', 'matrix/climbing', initial_logits=(0.0, 1.0))",
        ["initial_logits", "3"],
    ),
    # environments
    "payoff with NaN": (
        "jt.run('ippo', jt.make('matrix/custom', payoff=[[1, float('nan')], [0, 1]]))",
        ["payoff[0, 1]", "nan", "finite"],
    ),
    "payoff of rank 1": ("jt.make('matrix/custom', payoff=[1, 2])", ["1 axes", "at least 2"]),
    "payoff with ragged rows": (
        "jt.make('matrix/custom', payoff=[[1, 2], [3]])",
        ["[[1, 2], [3]]", "equal length"],
    ),
    "length below one": ("jt.make('hallway', length=0)", ["length=0", "1"]),
    "environments of two shapes": (
        "jt.run('ippo', ['matrix/climbing', 'matrix/note001'])",
        ["'matrix/climbing'", "'matrix/note001'", "same"],
    ),
    "environments of two kinds": (
        "jt.run('ippo', ['matrix/note001', 'hallway'])",
        ["'matrix/note001'", "'hallway'"],
    ),
    "static fields of games differ": (
        "jt.run('ippo', [('hallway', {'envs': 8}), ('hallway', {'envs': 16})])",
        ["envs", "equal"],
    ),
    "steps are not the horizon": ("jt.run('vdn', 'hallway', steps=7)", ["steps=7", "horizon", "2"]),
    "a field swept and given by the game": (
        "jt.run('ippo', [('hallway', {'lr': 0.1})], lr=[0.2, 0.3])",
        ["lr"],
    ),
    # stages and results
    "evaluate in another shape": (
        "jt.evaluate(trained, 'matrix/climbing')",
        ["'matrix/climbing'", "made for"],
    ),
    "distil in another shape": (
        "jt.distill(trained, 'matrix/climbing')",
        ["'matrix/climbing'", "made for"],
    ),
    "evaluate what is no policy": ("jt.evaluate('ippo', 'hallway')", ["str"]),
    "evaluate no episodes": ("jt.evaluate(trained, 'hallway', episodes=0)", ["episodes=0", "positive"]),
    "distil what is no policy": ("jt.distill('tad_ppo', 'hallway')", ["str", "Policy"]),
    "distil a lone policy nowhere": ("jt.distill(policy)", ["env"]),
    "member out of range": ("trained.policy(7)", ["member=7", "0..1"]),
    "member is no int": ("trained.policy('0')", ["member='0'"]),
    "evaluations do not divide": (
        "jt.train(None, None, None, iterations=5, evaluations=2)",
        ["evaluations=2", "iterations=5", "divide"],
    ),
}

BROKEN = {}
"""Mistakes whose message is not good yet: case to reason."""

SETUP = """
import json, sys
import jax
import jaxmarl_tad as jt
from jaxmarl_tad import programs

game = jt.make("hallway")
ticking = jt.make("hallway/meet", clock=True)
trained = jt.run("ippo", game, seeds=2, total_steps=256, evaluations=1, episodes=2)
policy = trained.policy()
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
)
told = {}
for name, written in json.load(sys.stdin).items():
    before = set(programs._COMPILED), len(compiled)
    try:
        eval(written)
        kind, text = None, ""
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    told[name] = kind, text, [len(set(programs._COMPILED) - before[0]), len(compiled) - before[1]]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    """What each mistake led to: kind of the error, its text, and what was compiled before."""
    done = subprocess.run(
        [sys.executable, "-c", SETUP],
        input=json.dumps({name: written for name, (written, _) in CASES.items()}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.xfail(reason=BROKEN[n], strict=True)] if n in BROKEN else [])
        for n in CASES
    ],
)
def test_a_mistake_is_named(told, name):
    written, expected = CASES[name]
    kind, text, compiled = told[name]
    assert kind == "ValueError", f"{written}: {kind}: {text}"
    assert "\n" not in text
    assert len(text) < 400, text
    missing = [part for part in expected if part not in text]
    assert not missing, f"{text!r} lacks {missing}"
    assert compiled == [0, 0]
