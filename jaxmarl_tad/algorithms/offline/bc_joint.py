"""Joint BC: cloning of what agents did together, one agent given what those before it did.

    repeat, with B recorded steps
        descend −Σ_i log π(a_i | s, a_1 … a_{i−1})

Source: the chain rule, with Ye et al. 2022's sequential joint policy fitted to data instead of rewards.
In a state that can be told from others, the product of the π(a_i | s, a_{<i}) becomes the share of each
*joint* action in the data; the product of what :mod:`bc` learns of every agent by itself does not.

Acting, it is centralised: agents are told the state and what others chose. Distilled, it is not::

    joint = jt.run("bc_joint", data, eval_env=game)
    agents = jt.distill(joint)                       # each of its likeliest actions, in their order

This is TAD's second stage on recorded behaviour. The greedy joint policy takes the likeliest action of
the first agent, then of the second given that, …: a joint action that the data hold, which agents keep
to without seeing each other, where all that they see is alike. It is the most frequent one if no other
action of an agent has more ways to go on (of 30 % (0, 0), 30 % (0, 1) and 40 % (1, 0) it takes (0, ·)).
With ``teacher="sample"`` the students are the product of the behaviour's marginals again, as those of
BC are. The teacher acts in the game while it teaches, so that this second stage is not from data alone.
Nothing here asks what pays: a behaviour is kept, not improved.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad import distributions
from jaxmarl_tad.autoregressive import Order, autoregressive, rows_needed
from jaxmarl_tad.config import Real, require, struct
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.networks.net import Kind, Remember, resolve_kind
from jaxmarl_tad.networks.prefix import Read
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.offline import WINDOW, Lesson, descended, lesson
from jaxmarl_tad.offline.diagnostics import watch
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.types import Algorithm, Key, Metrics, Policy
from tad_envs import Spec


@struct
class Config:
    """Settings of joint BC."""

    total_steps: int = 1_000
    """Gradient steps of one member."""
    batch: int = 128
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 1 without unless given."""
    lr: Real | None = None
    """Adam's learning rate; 0.05 for tables and 1e-3 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    max_grad_norm: Real = 1.0
    """Largest global norm of a gradient."""
    information: Literal["state", "local"] = "state"
    """What agents are told besides the actions before theirs: the state, or their own view."""
    order: Order = "fixed"
    """Who chooses first: by index, or drawn for every step. Students can only keep to the former."""
    prefix: Read = "sum"
    """How networks other than tables read the choices before: as one-hot inputs, or by attention."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    head: distributions.Family = "tanh_gaussian"
    """How continuous actions are distributed: bounded by tanh, or as drawn."""
    initial_logits: Logits = 0.0
    """Added to a table's initial logits, whatever was chosen before: ``[A]``, or ``[N, A]``."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        require(self.batch >= 1, "bc_joint: sizes must be positive.")


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(
        spec.discrete or config.network != "table",
        "bc_joint: network='table' has a row for every choice of those before, and continuous actions "
        "cannot be listed; use network='mlp'.",
    )
    rows = rows_needed(_seen(config), spec, config.sharing == "full_id")
    kind = resolve_kind(config.network, config.memory, spec, rows) if spec.discrete else "mlp"
    lr = (0.05 if kind == "table" else 1e-3) if config.lr is None else config.lr
    window = (1 if config.memory == "none" else WINDOW) if config.window is None else config.window
    return {"network": kind, "lr": lr, "window": window}


def _seen(config: Config) -> Literal["own", "state"]:
    return "own" if config.information == "local" else "state"


class Params(NamedTuple):
    """Parameters of the joint policy."""

    policy: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of joint BC on ``data``; ``config`` as returned by :func:`resolve`."""
    spec = data.spec
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    team, family = autoregressive(config, spec, _seen(config)), distributions.head(config.head, spec)
    squashed = not spec.discrete and config.head == "tanh_gaussian"
    optimiser, compared = adam(config.max_grad_norm), watch(data)

    def loss(params: Params, seen: Lesson, order: Array | None) -> tuple[Array, Metrics]:
        chosen = jnp.arctanh(seen.action) if squashed else seen.action
        first = seen.first[:-1]
        fresh = jax.tree.map(lambda m: jnp.tile(m, (first.shape[1], *[1] * m.ndim)), team.start())
        outputs, _ = team.replay(params.policy, fresh, seen.now, chosen, order, first)
        log_prob, _ = family.judge(outputs, seen.now.legal, chosen)  # log π(a_i | s, a_{<i})
        report = compared.of_policy(seen, log_prob)
        return -report["log_prob"], report

    def init(key: Key) -> State:
        params = Params(team.init(key))
        return State(params, Params(optimiser.init(params.policy)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        seen, order = lesson(data, key, config.batch, window), None
        if config.order == "random":
            drawn = jax.random.uniform(jax.random.fold_in(key, 1), seen.counts.shape)
            order = jnp.argsort(drawn, axis=-1)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, seen, order)
        lr = base * (1 - (1 - config.lr_end) * progress)
        return State(*descended(optimiser, slopes, state.optimiser, state.params, (lr,))), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return team.policy(state.params.policy, greedy=greedy)

    return Algorithm(init, step, policy)
