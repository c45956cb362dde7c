"""BC: behavioural cloning, every agent by itself.

    repeat, with B recorded steps
        descend −Σ_i log π_i(a_i | τ_i)

Source: Pomerleau 1989. In a state that agents can tell apart from others, π_i becomes the share of each
action in the data: what agents did together is not imitated, only what each did. Continuous policies
are tanh-normal, and the greedy one takes the mean.
"""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from jaxmarl_tad.config import Real, require, struct
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.networks.net import Kind, Remember
from jaxmarl_tad.offline import Lesson, actor, descended, lesson, resolve_common
from jaxmarl_tad.offline.diagnostics import watch
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.types import Activation, Algorithm, Key, Metrics, Policy
from tad_envs import Spec


@struct
class Config:
    """Settings of BC."""

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
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        require(self.batch >= 1, "bc: sizes must be positive.")


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    return resolve_common(config, spec)


class Params(NamedTuple):
    """Parameters of the policies."""

    policy: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of BC on ``data``; ``config`` as returned by :func:`resolve`."""
    assert config.lr is not None and config.window is not None
    base, window = config.lr, config.window
    policies, optimiser = actor(config, data.spec), adam(config.max_grad_norm)
    compared = watch(data)

    def loss(params: Params, seen: Lesson) -> tuple[Array, Metrics]:
        report = compared.of_policy(seen, policies.log_prob(params.policy, seen))
        return -report["log_prob"], report

    def init(key: Key) -> State:
        params = Params(policies.init(key))
        return State(params, Params(optimiser.init(params.policy)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        seen = lesson(data, key, config.batch, window)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, seen)
        lr = base * (1 - (1 - config.lr_end) * progress)
        return State(*descended(optimiser, slopes, state.optimiser, state.params, (lr,))), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return policies.policy(state.params.policy, greedy=greedy)

    return Algorithm(init, step, policy)
