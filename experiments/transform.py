"""The theory of transformation and distillation, executed: what is exact, what is lost, what it costs.

    python experiments/transform.py    # tables, CSV files and figures into runs/transform

1. Values. The sequential game Γ has the optimum of the game M itself: V*_M = γ^((1−n)/n) V*_Γ with
   fractional discounting, V*_M = V*_Γ with block discounting. Both sides solved exactly.
2. Orders. The optimum does not depend on who chooses first, how fast it is found does. All orders of
   three agents train in one program: a game with permuted agents is the same game, as data.
3. Distillation. A teacher that mixes optima loses them when it is distilled (XOR: 1/2 instead of 1);
   its most likely actions do not. What the state says and agents' histories do not is lost too
   (relay): students with memory end at the best decentralised value, whatever it is.
4. Acting one after the other, against acting at once, by the number of agents.

Expected: deviations of rounding size; the optimum in every order, at speeds that differ severalfold (in
the given budget 72 to 100 % of seeds get there); XOR 1/2 and 1, KL log 2 and 0; relay students on the
lines of the best values; on a CPU acting in turn costs less than n times acting at once.
"""

import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jaxmarl_tad as jt
from jaxmarl_tad import report
from tad_envs import Sequential, Spec, finite, optimal, struct
from tad_envs.didactic import Place
from tad_envs.struct import AnyArray

OUT = pathlib.Path(os.environ.get("OUT", "runs/transform"))
PPO = {"envs": 128, "epochs": 4, "lr": 0.02}


def main() -> None:
    began, wall = time.process_time(), time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    written: list[pathlib.Path] = []
    for section in (values, orders, distillation, acting):
        before = time.process_time()
        written += section()
        print(f"[{section.__name__}: {time.process_time() - before:.1f} CPU-seconds]\n", flush=True)
    print("\n".join(map(str, written)))
    seconds = time.process_time() - began
    print(f"\n{seconds:.1f} CPU-seconds, {time.perf_counter() - wall:.1f} s, after imports")


def shown(title: str, rows: Sequence[Mapping], name: str) -> pathlib.Path:
    """Print rows as a table and write them as a CSV."""
    path = OUT / f"{name}.csv"
    print(f"{title}\n\n{report.table(rows, path=path)}\n")
    return path


# --- 1. values ------------------------------------------------------------------------------------


@struct
class RandomGame:
    """S places, N agents with A actions, random transitions, positive rewards; the clock truncates."""

    transition: Float[AnyArray, "S J S"]
    payoff: Float[AnyArray, "S J"]
    agents: int
    actions: int
    horizon: int
    name: str = ""

    @property
    def spec(self) -> Spec:
        places = self.payoff.shape[0]
        return Spec(
            n_agents=self.agents,
            obs_dim=places,
            state_dim=places,
            horizon=self.horizon,
            n_actions=self.actions,
            one_hot=True,
            terminates=False,
        )

    def starts(self):
        places = self.payoff.shape[0]
        everywhere = Place(jnp.arange(places, dtype=jnp.int32), jnp.zeros(places, jnp.int32))
        return jnp.full(places, 1 / places), everywhere

    def observe(self, state):
        feature = finite.one_hot(state.place, self.payoff.shape[0])
        return finite.common_view(feature, jnp.ones((self.agents, self.actions), bool))

    def outcomes(self, state, action):
        places = self.payoff.shape[0]
        joint = finite.joint_index(action, self.actions)
        clock = jnp.full(places, jnp.minimum(state.clock + 1, self.horizon))
        following = Place(jnp.arange(places, dtype=jnp.int32), clock)
        reward = jnp.full(places, jnp.asarray(self.payoff)[state.place, joint])
        return jnp.asarray(self.transition)[state.place, joint], following, reward, clock < 0

    def reset(self, key):
        return finite.begin(self, key)

    def step(self, key, state, action):
        return finite.advance(self, key, state, action, lambda s: s.clock >= self.horizon)


def random_game(seed: int, agents: int, actions: int = 3, places: int = 4, horizon: int = 6):
    """A game drawn from a seed; rewards lie between 0.1 and 1, so that no value is 0."""
    rng, joint = np.random.default_rng(seed), actions**agents
    return RandomGame(
        transition=rng.dirichlet(np.ones(places), (places, joint)).astype(np.float32),
        payoff=rng.uniform(0.1, 1.0, (places, joint)).astype(np.float32),
        agents=agents,
        actions=actions,
        horizon=horizon,
    )


def deviation(game: RandomGame, gamma: float, discount: str) -> float:
    """Largest |γ^((1−n)/n) V*_Γ / V*_M − 1| over all places and times (factor 1 for blocks)."""
    n = game.agents
    team = jt.solve(game, gamma)
    virtual = jt.solve(Sequential(game, discount=discount), gamma)
    scale = gamma ** ((1 - n) / n) if discount == "fractional" else 1.0

    def index(states: Place) -> dict[tuple[int, int], int]:
        pairs = zip(states.place.tolist(), states.clock.tolist(), strict=True)
        return {pair: i for i, pair in enumerate(pairs)}

    opening = np.flatnonzero(virtual.states.position == 0)
    at = index(jax.tree.map(lambda x: x[opening], virtual.states.inner))
    columns = [opening[at[pair]] for pair in index(team.states)]
    ours = scale * virtual.values[::n, columns]
    return float(np.max(np.abs(ours / team.values - 1)))


def values() -> list[pathlib.Path]:
    games = 3
    rows = []
    for n, gamma in itertools.product((2, 3, 4), (0.5, 0.9, 0.99)):
        found = {
            discount: max(deviation(random_game(seed, n), gamma, discount) for seed in range(games))
            for discount in ("fractional", "block")
        }
        rows.append({"agents": n, "gamma": gamma, "factor": gamma ** ((1 - n) / n), **found})
    title = (
        f"V*_M against γ^((1−n)/n) V*_Γ (fractional) and V*_Γ (block): largest relative deviation over "
        f"all states and times of {games} random games each"
    )
    return [shown(title, rows, "transform_values")]


# --- 2. orders ------------------------------------------------------------------------------------


def permuted(payoff: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """The game in every order: axis 0 of a table belongs to the agent whom the order names first."""
    return {order: np.transpose(payoff, order) for order in itertools.permutations(range(payoff.ndim))}


def three_agents() -> dict[str, np.ndarray]:
    """Payoffs in which agents' parts differ."""
    # Agent 0 alone can risk: its action 0 pays 10 if all play 0, else -20; the others' errors cost
    # little where it stays safe.
    risky = np.zeros((3, 3, 3))
    risky[0], risky[1], risky[2] = -20, 5, 4
    risky[0, 0, 0], risky[1, 1] = 10, 6
    drawn = np.random.default_rng(0).normal(0, 10, (3, 3, 3)).round()
    climbing = np.asarray(jt.make("matrix/climbing_3p").payoff)
    return {"climbing, 3 agents": climbing, "agent 0 risks": risky, "random payoffs": drawn}


def steps_until(share: np.ndarray, steps: np.ndarray, least: float = 0.5) -> float:
    """Environment steps at the first evaluation with ``share >= least``; infinite if there is none."""
    there = np.flatnonzero(share >= least)
    return float(steps[there[0]]) if len(there) else math.inf


def orders(seeds: int = 64) -> list[pathlib.Path]:
    tables = {game: permuted(payoff) for game, payoff in three_agents().items()}
    games = [
        jt.make("matrix/custom", payoff=payoff)
        for table in tables.values()
        for payoff in table.values()
    ]
    trained = jt.run(
        "tad_ppo",
        games,
        seeds=seeds,
        evaluations=15,
        episodes=1,
        entropy_coef=0.01,
        total_steps=150 * PPO["envs"],
        **PPO,
    )
    curves = iter(trained.curves["return"].reshape(len(games), seeds, -1))
    rows, shares = [], {}
    for game, table in tables.items():
        optimum = float(np.max(table[0, 1, 2]))
        for order in table:
            curve = next(curves)
            label = " → ".join(map(str, order))
            share = optimal(curve, optimum).mean(axis=0)
            shares[game, label] = share
            rows.append(
                {
                    "game": game,
                    "order": label,
                    "optimum": optimum,
                    "mean return": float(curve[:, -1].mean()),
                    "share optimal": float(share[-1]),
                    "steps until half are": steps_until(share, trained.steps),
                }
            )
    title = f"TAD-PPO by the order in which agents choose, {seeds} seeds each, one program"
    picture = orders_figure(shares, trained.steps, seeds)
    return [shown(title, rows, "transform_orders_table"), picture]


# --- 3. distillation ------------------------------------------------------------------------------


def product_return(probabilities: jax.Array, payoff: jax.Array) -> jax.Array:
    """Expected payoff ``[...]`` of two independent agents with distributions ``[..., 2, A]``."""
    return jnp.einsum("...a,...b,ab->...", probabilities[..., 0, :], probabilities[..., 1, :], payoff)


def clue_entropy(env) -> float:
    """Least cross-entropy of a relay's students with a certain teacher: of targets given clues.

    Summed over agents and averaged over steps, in nats, for agents with memory.
    """
    k, clue = env.n_targets, float(env.clue)
    p = np.full(k, (1 - clue) / k)
    p[0] += clue
    told = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    before = float(env.delay)
    return env.n_agents * (before * math.log(k) + (env.steps - before) * told) / env.steps


def over_members(trained: jt.Trained, states: Sequence, measure: Callable) -> np.ndarray:
    """``measure(env, policy)`` of every member's sampling policy in each state, ``[M, states]``."""

    def one(member, state):
        policy = trained.plan.make(member.config, member.source).policy(state, greedy=False)
        return measure(member.env, policy)

    measured = jax.jit(jax.vmap(one))
    return np.stack([np.asarray(measured(trained.stacked, state)) for state in states], axis=1)


def independent_return(env, policy: jt.Policy) -> jax.Array:
    """Exact return of a decentralised policy in a matrix game of one step."""
    _, seen = env.reset(jax.random.key(0))
    _, _, told = policy.act(jax.random.key(0), policy.start(), seen)
    return product_return(jnp.exp(told["log_probs"]), jnp.asarray(env.payoff))


def draws(env, policy: jt.Policy, count: int = 4096) -> jax.Array:
    """Mean payoff and entropy of ``count`` joint actions drawn in a matrix game of one step."""
    state, seen = env.reset(jax.random.key(0))

    def draw(key):
        action, _, told = policy.act(key, policy.start(), seen)
        reward = env.step(key, state, action)[1].reward
        return jnp.stack([reward, -jnp.sum(told["log_prob"])])

    return jax.vmap(draw)(jax.random.split(jax.random.key(1), count)).mean(axis=0)


def xor(seeds: int = 16) -> tuple[list[dict], dict[str, dict]]:
    """Students of runs that mix both optima of XOR, taught by drawn or by the likeliest actions."""
    # Entropy keeps the first agent undecided between the optima; the second follows it.
    teacher = jt.run(
        "tad_ppo",
        "matrix/xor",
        seeds=seeds,
        entropy_coef=0.1,
        evaluations=1,
        episodes=1,
        total_steps=150 * PPO["envs"],
        **PPO,
    )
    mixed, entropy = np.moveaxis(over_members(teacher, [teacher.state], draws)[:, 0], -1, 0)
    told = {"sample": (mixed, entropy), "argmax": (np.ones(seeds), np.zeros(seeds))}
    rows, curves = [], {}
    for kind, (taught, spread) in told.items():
        states: list = []
        student = jt.distill(
            teacher,
            teacher=kind,
            envs=256,
            total_steps=256 * 120,
            lr=0.1,
            evaluations=15,
            episodes=1,
            after_chunk=lambda i, state, metrics, states=states: states.append(
                jax.tree.map(np.array, state)
            ),
        )
        curves[kind] = {
            "steps": student.steps,
            "return": over_members(student, states, independent_return),
            # Labels are actions: their cross-entropy exceeds the divergence by the teacher's entropy.
            "kl": student.curves["cross_entropy"] - spread[:, None],
            "agreement": student.curves["agreement"],
        }
        last = {name: float(curves[kind][name][:, -1].mean()) for name in ("return", "kl", "agreement")}
        rows.append({"teacher acts by": kind, "teacher return": float(taught.mean())})
        rows[-1] |= {f"student {name}": value for name, value in last.items()}
    return rows, curves


def relay(seeds: int = 2) -> list[dict]:
    """Teachers that see the state, and their students with and without memory, by clue and by delay."""
    clues, delays = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0), (1, 2, 3, 4)
    games = [jt.make("relay", clue=clue, names=1) for clue in clues]
    games += [jt.make("relay", delay=delay, names=1) for delay in delays]
    teacher = jt.run(
        "tad_ppo", games, seeds=seeds, total_steps=100 * 64 * 4, envs=64, evaluations=1, episodes=256
    )
    size = {"envs": 256, "total_steps": 256 * 4 * 80, "evaluations": 4, "episodes": 4096}
    student = jt.distill(teacher, memory="gru", hidden=(32,), lr=3e-3, **size)
    reactive = jt.distill(teacher, **size)

    def means(trained: jt.Trained, name: str) -> np.ndarray:
        return trained.final[name].reshape(len(games), seeds).mean(axis=1)

    columns = {
        "teacher": means(teacher, "return"),
        "student": means(student, "return"),
        "student, no memory": means(reactive, "return"),
        "agreement": means(student, "agreement"),
        "cross-entropy": means(student, "cross_entropy"),
    }
    rows = []
    for i, game in enumerate(games):
        best = {"best joint": float(jt.solve(game).value)}
        best |= {"best decentralised": game.decentralised_value()}
        best |= {"best without memory": game.decentralised_value(memory=False)}
        found = {name: float(column[i]) for name, column in columns.items()}
        row = {"clue": float(game.clue), "delay": float(game.delay)}
        rows.append(row | best | found | {"least cross-entropy": clue_entropy(game)})
    return rows


def distillation() -> list[pathlib.Path]:
    lessons, curves = xor()
    written = [shown("XOR: students of a teacher that mixes both optima", lessons, "transform_xor")]
    rows = relay()
    title = "relay: what the state tells and histories do not is lost, and no more than that"
    written.append(shown(title, rows, "transform_relay"))
    written.append(distillation_figure(curves, rows))
    return written


# --- 4. acting ------------------------------------------------------------------------------------


ACTORS = {
    "at once (IPPO)": ("ippo", {}),
    "in turn, sums (TAD)": ("tad_ppo", {"prefix": "sum"}),
    "in turn, attention (TAD)": ("tad_ppo", {"prefix": "attention"}),
}


def actor(method: str, env, batch: int, steps: int, **fields) -> Callable[[], None]:
    """A compiled function that acts ``steps`` times in ``batch`` copies of the first observation."""
    row = jt.algorithm(method)
    config = row.resolved(row.settings(network="mlp", envs=1, **fields), env.spec)
    algorithm = row.make(config, env)

    @jax.jit
    def act(state, seen):
        policy = algorithm.policy(state, greedy=False)
        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *jnp.shape(x))), policy.start())

        def step(seen, t):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), t), batch)
            action, _, _ = jax.vmap(policy.act)(keys, memory, seen)
            # What is seen next depends on the action, so that no step can be left out or moved.
            nudge = 1e-6 * jnp.sum(action)
            return seen._replace(agents=seen.agents + nudge, state=seen.state + nudge), None

        return jax.lax.scan(step, seen, jnp.arange(steps))[0].state

    state = jax.jit(algorithm.init)(jax.random.key(0))
    seen = jax.vmap(lambda key: env.reset(key)[1])(jax.random.split(jax.random.key(0), batch))

    def timed() -> None:
        act(state, seen).block_until_ready()

    timed()
    return timed


def interleaved(functions: Sequence[Callable[[], None]], rounds: int) -> np.ndarray:
    """Seconds of each function in each round, ``[rounds, functions]``; who begins changes."""
    seconds = np.zeros((rounds, len(functions)))
    for i in range(rounds):
        for j in np.roll(np.arange(len(functions)), i):
            began = time.perf_counter()
            functions[j]()
            seconds[i, j] = time.perf_counter() - began
    return seconds


def acting(rounds: int = 25) -> list[pathlib.Path]:
    rows = []
    for (batch, steps), n in itertools.product(((1, 512), (256, 16)), (2, 3, 5, 8, 10)):
        env = jt.make("hallway", n_agents=n, length=8)
        functions = [actor(method, env, batch, steps, **own) for method, own in ACTORS.values()]
        seconds = interleaved(functions, rounds)
        ratios = np.median(seconds / seconds[:, :1], axis=0)
        each = np.median(seconds, axis=0) / (batch * steps) * 1e6
        for name, ratio, microseconds in list(zip(ACTORS, ratios, each, strict=True)):
            rows.append({"environments": batch, "agents": n, "acting": name})
            rows[-1] |= {"microseconds": float(microseconds), "ratio": float(ratio)}
    title = (
        f"One joint action, MLPs of 64 x 64 (per environment and step; ratio: median over {rounds} "
        "rounds of the time against IPPO's in the same round; reported for TAD's networks: about n)"
    )
    return [shown(title, rows, "transform_acting_table"), acting_figure(rows)]


# --- figures --------------------------------------------------------------------------------------


def panels(titles: Sequence[str], columns: int, height: float):
    """A figure in the style of the others, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(report.WIDTH, height), dpi=report.DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(math.ceil(len(titles) / columns), columns, squeeze=False).flatten()
    for own, title in zip(axes, titles, strict=True):
        own.set_title(title, size=8.5, weight="bold", loc="left")
        own.tick_params(labelsize=7.5, length=2.5, color=report.MUTED, labelcolor=report.MUTED)
        own.grid(axis="y", color=report.FAINT, linewidth=0.6)
        own.spines[["top", "right"]].set_visible(False)
        own.spines[["left", "bottom"]].set_color(report.MUTED)
    return figure, axes


def saved(figure, name: str, rows: Sequence[Mapping]) -> pathlib.Path:
    """The PNG, and a CSV of what it shows beside it."""
    path = OUT / f"{name}.png"
    figure.savefig(path, metadata={"Software": None})
    report.table(rows, path=path.with_suffix(".csv"))
    return path


def named(axes, x: str, y: str = "") -> None:
    axes.set_xlabel(x, size=8, color=report.MUTED)
    axes.set_ylabel(y, size=8, color=report.MUTED)


def thousands(axes) -> None:
    """Environment steps as 5k, 10k, ..."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def orders_figure(
    shares: Mapping[tuple[str, str], np.ndarray], steps: np.ndarray, seeds: int
) -> pathlib.Path:
    games = list(dict.fromkeys(game for game, _ in shares))
    labels = list(dict.fromkeys(label for _, label in shares))
    figure, axes = panels(games, columns=len(games), height=3.0)
    points = []
    for own, game in zip(axes, games, strict=True):
        for i, label in enumerate(labels):
            # Orders that differ in agents of equal parts coincide: every other line is dashed.
            style = {"linestyle": (0, (3, 2)) if i % 2 else "-", "linewidth": 1.6 if i % 2 else 2.4}
            own.plot(steps, shares[game, label], color=report.METHODS[i], label=label, **style)
            points += [
                {"game": game, "order": label, "step": int(x), "share": float(y)}
                for x, y in zip(steps, shares[game, label], strict=True)
            ]
        own.set_ylim(-0.03, 1.03)
        thousands(own)
        named(own, "environment steps", f"share of {seeds} seeds at V*" if game == games[0] else "")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=7.5, frameon=False, loc="outside right center", title="order")
    title = "Who chooses first: the optimum is the same, the way there is not"
    figure.suptitle(title, size=11, weight="bold", x=0.01, ha="left")
    return saved(figure, "transform_orders", points)


def distillation_figure(curves: Mapping[str, Mapping], relays: Sequence[Mapping]) -> pathlib.Path:
    titles = (
        "XOR: return of the students",
        "XOR: KL from teacher to students",
        "XOR: agreement with the teacher",
        "relay: by how sure the clue is",
        "relay: by when the clue comes",
        "relay: cross-entropy of students",
    )
    figure, axes = panels(titles, columns=3, height=5.6)
    colours = dict(zip(("sample", "argmax"), (report.METHODS[1], report.METHODS[0]), strict=True))
    labels = {"sample": "teacher draws", "argmax": "likeliest action"}
    limits = {"return": (0.5, 1.0), "kl": (math.log(2), 0.0), "agreement": (0.5, 1.0)}
    shown_rows: list[dict] = []
    for own, (name, ends) in zip(axes, limits.items(), strict=False):
        for kind, curve in curves.items():
            steps, each = curve["steps"], curve[name]
            own.plot(steps, each.T, color=colours[kind], alpha=0.15, linewidth=0.6)
            own.plot(steps, each.mean(0), color=colours[kind], linewidth=1.8, label=labels[kind])
            shown_rows += [
                {"panel": f"xor {name}", "line": labels[kind], "x": float(x), "y": float(y)}
                for x, y in zip(steps, each.mean(0), strict=True)
            ]
        for end in ends:
            own.axhline(end, color=report.INK, linewidth=0.9, linestyle=(0, (4, 3)))
        thousands(own)
        named(own, "environment steps")
    axes[0].legend(fontsize=7.5, frameon=False, loc="center right")

    lines = {
        "best joint": (report.INK, "-", ""),
        "best decentralised": (report.METHODS[0], "-", ""),
        "best without memory": (report.MUTED, "-", ""),
        "teacher": (report.INK, "none", "s"),
        "student": (report.METHODS[0], "none", "o"),
        "student, no memory": (report.MUTED, "none", "^"),
    }
    by_clue = sorted((row for row in relays if row["delay"] == 0), key=lambda row: row["clue"])
    by_delay = [row for row in relays if row["clue"] == 1]
    for own, x, rows in ((axes[3], "clue", by_clue), (axes[4], "delay", by_delay)):
        for name, (colour, line, marker) in lines.items():
            along, up = [row[x] for row in rows], [row[name] for row in rows]
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4.5}
            own.plot(along, up, label=name, **style)
            shown_rows += [
                {"panel": f"relay by {x}", "line": name, "x": a, "y": b}
                for a, b in zip(along, up, strict=True)
            ]
        named(own, x, "return" if x == "clue" else "")
    axes[3].legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.93))
    along = [row["clue"] for row in by_clue]
    for name, line, marker in (("least cross-entropy", "-", ""), ("cross-entropy", "none", "o")):
        up = [row[name] for row in by_clue]
        label = "student" if marker else "entropy of targets given clues"
        style = {"color": report.METHODS[0], "linestyle": line, "marker": marker, "markersize": 4.5}
        axes[5].plot(along, up, label=label, **style)
        shown_rows += [
            {"panel": "relay cross-entropy", "line": name, "x": a, "y": b}
            for a, b in zip(along, up, strict=True)
        ]
    axes[5].legend(fontsize=6.5, frameon=False, loc="lower left")
    named(axes[5], "clue", "nats, sum over agents")
    figure.suptitle("What distillation loses", size=11, weight="bold", x=0.01, ha="left")
    return saved(figure, "transform_distillation", shown_rows)


def acting_figure(rows: Sequence[Mapping]) -> pathlib.Path:
    batches = list(dict.fromkeys(row["environments"] for row in rows))
    titles = [f"{batch} environment{'s' * (batch > 1)} at once" for batch in batches]
    figure, axes = panels(titles, columns=len(batches), height=3.0)
    for own, batch in zip(axes, batches, strict=True):
        for name, colour in zip(ACTORS, report.METHODS, strict=False):
            own_rows = [row for row in rows if (row["environments"], row["acting"]) == (batch, name)]
            agents, ratios = ([row[x] for row in own_rows] for x in ("agents", "ratio"))
            own.plot(agents, ratios, "o-", color=colour, markersize=4, label=name)
        own.plot(
            agents, agents, color=report.INK, linewidth=0.9, linestyle=(0, (4, 3)), label="n times"
        )
        own.set_ylim(bottom=0)
        named(own, "agents", "time of a joint action / IPPO's" if batch == batches[0] else "")
    axes[0].legend(fontsize=7.5, frameon=False, loc="upper left")
    figure.suptitle("What acting in turn costs", size=11, weight="bold", x=0.01, ha="left")
    return saved(figure, "transform_acting", rows)


if __name__ == "__main__":
    sys.exit(main())
