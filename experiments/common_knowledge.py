"""MACKRL's table: what acting as one on common knowledge is worth, by exact gradients.

    python experiments/common_knowledge.py              # about two CPU-minutes
    SAMPLED=0 python experiments/common_knowledge.py    # the exact part alone, half a minute

Two payoffs, equally often; with probability p it is common knowledge which one is played, otherwise
each agent sees it with probability 1/2 without knowing what the other sees (``mackrl_pair``). Three
learners ascend the exact expected payoff (Adam 0.05, 202 steps, logits drawn from N(0, 1)), and are
scored with logits a hundred times as large, which is nearly greedy:

* IAC: each agent acts on what it sees itself;
* JAL: the pair acts as one on what is common knowledge;
* MACKRL: the pair acts as one on what is common knowledge, or delegates to the two.

Expected: the means of 40 other seeds, in column ``known``, within 0.01, or within two standard errors
of the difference of two such means where these are larger; JAL (1 + p) / 2 exactly; MACKRL on the line
from its value at p = 0 to 1. No decentralised policy earns more than p + 0.75 (1 - p). Given the first
logits of 100 runs of the authors' code at p = 0, these runs end where those do, each within 1e-7; the
mean is 0.643 there, and 0.633 over 400 starts of our own, so that 0.661 is a draw on the high side.

Second table: what the registered ``mackrl`` finds from samples, and independent actors with a critic
of the state, ``maa2c``. Expected of ``mackrl``: as much as JAL, within 0.02. As first policies are
uniform, to delegate pays less than a fixed joint action, and a pair that has learned so stays with it.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report
from jaxmarl_tad.algorithms.joint import mackrl
from jaxmarl_tad.optimise import adam
from tad_envs import common_knowledge
from tad_envs.partial import MackrlPair

OUT = pathlib.Path(os.environ.get("OUT", "runs/common_knowledge"))
SEEDS = int(os.environ.get("SEEDS", "40"))
SAMPLED = os.environ.get("SAMPLED", "1") == "1"
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
KNOWN = {
    "iac": (0.668, 0.713, 0.757, 0.801, 0.846, 0.890),
    "jal": (0.500, 0.600, 0.700, 0.800, 0.900, 1.000),
    "mackrl": (0.661, 0.729, 0.797, 0.864, 0.932, 1.000),
}
MAY = {"iac": (0.0, -1e9), "jal": (-1e9, 0.0), "mackrl": (0.0, 0.0)}
"""Added to the pair's logits: of delegating, and of joint actions."""
STEPS, RATE, COLDER = 202, 0.05, 100.0


def start(seed: Any) -> dict[str, jax.Array]:
    """First logits of the two agents ``own [2, 5, 5]`` and of the pair ``[3, 26]``, N(0, 1)."""
    one, other = jax.random.split(jax.random.key(seed))
    return {"own": jax.random.normal(one, (2, 5, 5)), "pair": jax.random.normal(other, (3, 1 + 5**2))}


def exact(share: Any, may: Any, first: dict[str, jax.Array]) -> jax.Array:
    """The nearly greedy payoff that a learner reaches where ``share`` is the probability p."""
    env = jt.make("mackrl_pair")
    assert isinstance(env, MackrlPair)
    width, cases = env.spec.n_actions, env.spec.state_dim
    common, _ = common_knowledge(env)
    chance, states = MackrlPair(payoffs=env.payoffs, common=share, seen=env.seen).starts()
    rows = jax.vmap(env.observe)(states).agents
    own = jnp.argmax(rows, axis=-1)  # [cases, 2]: what each sees
    both = jnp.argmax(jax.vmap(common)(rows[:, 0], own[:, 0]), axis=-1)
    joint = jnp.asarray(np.indices((width, width)).reshape(2, -1).T)
    payoff = jnp.asarray(env.payoffs)[states // 5].reshape(cases, -1)
    ways, legal = mackrl.pairing(2), jnp.ones((cases, 2, width), bool)
    alive = jnp.ones((cases, 2), bool)
    shift = jnp.where(jnp.arange(1 + width**2) == 0, may[0], may[1])

    def value(params: Any, colder: float = 1.0) -> jax.Array:
        log_own = jax.nn.log_softmax(colder * params["own"])[jnp.arange(2), own]
        pair = jax.nn.log_softmax(colder * params["pair"] + shift)[both]
        levels = mackrl.Levels(jnp.zeros((cases, 1)), pair[:, None])
        each = jax.vmap(
            lambda u: mackrl.log_probability(
                ways, levels, log_own, legal, alive, jnp.broadcast_to(u, (cases, 2))
            ),
            out_axes=1,
        )(joint)
        return jnp.sum(chance * jnp.sum(jnp.exp(each) * payoff, axis=1))

    rule = adam(np.inf, eps=1e-8)

    def climb(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        slope = jax.grad(lambda p: -value(p))(params)
        return rule.update(slope, state, params, RATE), None

    (params, _), _ = jax.lax.scan(climb, (first, rule.init(first)), length=STEPS)
    return value(params, COLDER)


def learned(seeds: int = SEEDS, shares: tuple[float, ...] = SHARES) -> dict[str, np.ndarray]:
    """Nearly greedy payoffs of the three learners, ``{learner: [shares, seeds]}``, in one program."""
    over = jax.vmap(exact, (None, None, 0))
    over = jax.vmap(jax.vmap(over, (0, None, None)), (None, 0, None))
    starts = jax.vmap(start)(jnp.arange(seeds))
    values = jax.jit(over)(jnp.asarray(shares), jnp.asarray(list(MAY.values())), starts)
    return dict(zip(MAY, np.asarray(values), strict=True))


def holds(values: np.ndarray, known: float) -> bool:
    """Whether seeds and a mean of as many others agree."""
    error = float(np.std(values, ddof=1)) * np.sqrt(2 / len(values))
    return abs(float(values.mean()) - known) <= max(0.01, 2 * error)


def figure(payoffs: dict[str, np.ndarray]) -> pathlib.Path:
    """Payoff over the share of common knowledge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.0, 4.0), dpi=report.DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    shares = np.asarray(SHARES)
    axes.plot(shares, 0.75 + 0.25 * shares, color="black", linewidth=1, linestyle=(0, (4, 3)))
    for colour, (name, values) in zip(report.METHODS, payoffs.items(), strict=False):
        middle, error = values.mean(1), values.std(1, ddof=1) / np.sqrt(values.shape[1])
        axes.fill_between(shares, middle - 2 * error, middle + 2 * error, color=colour, alpha=0.2)
        axes.plot(shares, middle, color=colour, marker="o", markersize=3.5, label=name)
        axes.plot(shares, KNOWN[name], color=colour, marker="x", linestyle="none")
    axes.set_xlabel("probability that the game is common knowledge", size=8)
    axes.set_ylabel("payoff", size=8)
    axes.set_title(
        "Exact gradients: mean ± 2 standard errors\nx: known means; dashed: best decentralised",
        size=9,
        loc="left",
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    path = OUT / "common_knowledge.png"
    drawn.savefig(path, metadata={"Software": None})
    return path


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    payoffs = learned()
    rows = [
        {
            "learner": name,
            "p": share,
            "payoff": round(float(values.mean()), 3),
            "standard error": round(float(values.std(ddof=1)) / np.sqrt(len(values)), 4),
            "known": known,
            "as expected": holds(values, known),
        }
        for name, each in payoffs.items()
        for share, values, known in zip(SHARES, each, KNOWN[name], strict=True)
    ]
    print(report.table(rows, path=OUT / "table.csv"), flush=True)
    picture = figure(payoffs)
    if SAMPLED:
        games: list[Any] = [jt.make("mackrl_pair", common=share) for share in SHARES]
        rows = []
        for method in ("mackrl", "maa2c"):
            run = jt.run(method, games, seeds=8, evaluations=1, episodes=512)
            found = run.final["return"].reshape(len(games), -1).mean(1)
            rows += [
                {
                    "method": method,
                    "p": share,
                    "payoff": round(float(value), 3),
                    "expected": (1 + share) / 2 if method == "mackrl" else None,
                    "as expected": bool(abs(value - (1 + share) / 2) <= 0.02)
                    if method == "mackrl"
                    else None,
                }
                for share, value in zip(SHARES, found, strict=True)
            ]
        print(f"\n{report.table(rows, path=OUT / 'sampled.csv')}")
    print(f"\nresults: {OUT}\nfigure:  {picture}")


if __name__ == "__main__":
    main()
