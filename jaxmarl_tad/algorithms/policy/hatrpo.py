"""HATRPO: trust-region steps that agents take one after the other.

    repeat
        collect T steps in E environments with π_old = Π_i π_i(a_i | τ_i)
        G_t = λ-return of V(s);   Â = G − V, standardised over living agents
        M ← 1
        for each agent i, in a random order:
            L(θ) = mean ρ M Â,   ρ = π_θ(a_i | τ_i) / π_old,i(a_i | τ_i)
            g = ∇L;   H v = ∇(∇ mean KL(π_i || π_θ) · v) + c v
            x ≈ H⁻¹ g by conjugate gradients;   β = √(2δ / xᵀHx)
            θ_i ← θ_i + α^j β x for the least j < J at which KL < δ, L rises, and it rises by
                  more than κ of what α^j β gᵀx predicts; if there is none, θ_i stays
            M ← M π_i(a_i | τ_i) / π_old,i(a_i | τ_i), on the whole batch
        for K epochs: descend  the clipped Huber loss of V on normalised G

Source: Kuba et al. 2022, algorithm 2, with the constants of HARL. A step is a natural gradient of
length √(2δ) in the metric of the policy's own Fisher information, however large the gradient is.
There is no bonus for entropy. Differs from HARL in that the KL of discrete actions is the expectation
under the old policy (there, actions count equally, and H is not the Fisher information), in that
truncated episodes bootstrap from their true final observation, and in that KL is kept small with
respect to the policy before the step also where agents share parameters, for which nothing is promised.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.critics import critic as critic_of
from jaxmarl_tad.critics import improve_critic, lessons
from jaxmarl_tad.losses import masked_mean, standardise
from jaxmarl_tad.networks.net import Kind, Remember, resolve_kind
from jaxmarl_tad.networks.tables import Logits
from jaxmarl_tad.normalise import Scale, init_scale
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.sharing import Mode
from jaxmarl_tad.team import moved, order_of_turns, soloists
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Spec

SOLVED = 1e-10
"""Squared residual at which conjugate gradients stop."""


@struct
class Config:
    """Settings of HATRPO."""

    total_steps: int = 38_400
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 128
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    max_kl: Real = 0.01
    """δ: largest mean KL between an agent's policies before and after its turn, in nats."""
    damping: Real = 0.1
    """c: added to the diagonal of the Fisher information."""
    solver_steps: int = 10
    """Steps of conjugate gradients."""
    tries: int = 10
    """J: step sizes tried before an agent stays where it is."""
    backtrack: Real = 0.8
    """α: each step size tried is this share of the last, in (0, 1)."""
    accept: Real = 0.5
    """κ: share of the predicted improvement that must come true, in [0, 1]."""
    order: Literal["random", "fixed"] = "random"
    """Whose turn is next: another permutation in every iteration, or by index."""
    critic_epochs: int = 4
    """Passes of the critic over each batch; each policy takes one step."""
    minibatches: int = 1
    """Parts of each pass of the critic; divides ``envs``."""
    lr: Real | None = None
    """Adam's learning rate, of the critic; 0.02 for tables, else 5e-4 unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.95
    """λ of the λ-return, in [0, 1]."""
    clip: Real = 0.2
    """ε of the clipped value."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of the critic's gradient."""
    memory: Remember = "none"
    sharing: Mode = "none"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""
    head: distributions.Family = "gaussian"
    """How continuous actions are distributed: as drawn, or bounded by tanh."""
    initial_logits: Logits = 0.0
    """Added to a table's initial logits: ``[A]``, or ``[N, A]`` by agent. Means, if continuous."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.envs, self.minibatches, self.critic_epochs, self.solver_steps, self.tries)
        require(min(sizes) >= 1, "hatrpo: sizes must be positive.")
        check_divides(self, "minibatches", "envs")
        check_range(self, **dict.fromkeys(("gamma", "lam", "clip", "backtrack", "accept"), (0, 1)))
        check_range(self, max_kl=(0, jnp.inf), damping=(0, jnp.inf))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    rows = max(spec.obs_dim * spec.n_agents, spec.state_dim)
    kind = resolve_kind(config.network, config.memory, spec, rows)
    lr = (0.02 if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {"network": kind, "steps": resolve_steps(config.steps, spec), "lr": lr}


class Params(NamedTuple):
    """Parameter sets of the policies and of the critic."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Any
    """Of the critic."""
    scale: Scale
    actors: Actors
    critic_memory: Memory


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of HATRPO on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr
    team, critic = soloists(config, spec), critic_of(config, spec, "state")
    optimiser = adam(config.max_grad_norm)

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        params = Params(team.init(actor_key), critic.init(critic_key))
        return State(
            params=params,
            optimiser=optimiser.init(params.critic),
            scale=init_scale(),
            actors=begin(env, team.policy(params.actor, greedy=False), begin_key, config.envs),
            critic_memory=critic.start(config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key, order_key = keys(key, 3)
        params = state.params
        behaviour = team.policy(params.actor, greedy=False)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)
        judged = critic.assess(
            params.critic, state.critic_memory, seen, state.scale, config.gamma, config.lam
        )
        alive = seen.observation.alive
        turns = team.turns(seen, state.actors.memory, standardise(judged.advantage, alive))

        def learn(carry: tuple[Any, Any], agent: Any) -> tuple[tuple[Any, Any], Metrics]:
            """The turn of one agent, and what it does to M ``[T, E]``."""
            vectors, m = carry
            mine = team.set_of(agent)
            turn, memory = jax.tree.map(lambda x: x[agent], turns)
            old, scaled = vectors[mine], m * turn.advantage

            def surrogate(own: Any) -> tuple[Any, Any]:
                """L, and the outputs that give it."""
                outputs = team.outputs(own, turn, memory)
                log_prob, _ = team.judge(outputs, turn)
                ratio = jnp.exp(log_prob - turn.log_prob)
                return masked_mean(ratio * scaled, turn.alive), outputs

            def divergence(own: Any) -> Any:
                return team.divergence(before, team.outputs(own, turn, memory), turn)

            (start, before), slope = jax.value_and_grad(surrogate, has_aux=True)(old)
            product = curvature(divergence, old, config.damping)
            direction, left = conjugate_gradients(product, slope, config.solver_steps)
            length = jnp.maximum(direction @ (slope - left), 1e-12)  # xᵀHx
            full = direction * jnp.sqrt(2 * config.max_kl / length)
            predicted = slope @ full

            def attempt(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
                j, *stay, _ = carry
                tried, expected = old + config.backtrack**j * full, config.backtrack**j * predicted
                found, outputs = surrogate(tried)
                apart, rise = team.divergence(before, outputs, turn), found - start
                good = (apart < config.max_kl) & (rise > 0) & (rise > config.accept * expected)
                own, kl = (jnp.where(good, *x) for x in zip((tried, apart), stay, strict=True))
                return j + 1, own, kl, good

            untried = (jnp.zeros((), jnp.int32), old, jnp.zeros(()), jnp.zeros((), bool))
            unfinished = lambda carry: (carry[0] < config.tries) & ~carry[-1]  # noqa: E731
            _, own, kl, accepted = jax.lax.while_loop(unfinished, attempt, untried)
            log_prob, entropy = team.judge(team.outputs(own, turn, memory), turn)
            m = m * moved(log_prob, turn.log_prob, turn.alive)
            ratio = jnp.exp(team.judge(before, turn)[0] - turn.log_prob)
            report = {"entropy": entropy, "ratio": masked_mean(ratio, turn.alive), "kl": kl}
            report |= {"policy_loss": -start, "accepted": accepted.astype(jnp.float32)}
            return (vectors.at[mine].set(own), m), report

        order = order_of_turns(order_key, spec.n_agents, config.order)
        start = (team.vectors(params.actor), jnp.ones(alive.shape[:2]))
        (vectors, m), reports = jax.lax.scan(learn, start, order)

        valued, optimised, report = improve_critic(
            critic,
            optimiser,
            params.critic,
            state.optimiser,
            lessons(critic, judged, seen),
            state.critic_memory,
            learn_key,
            clip=config.clip,
            huber_delta=config.huber_delta,
            lr=lr,
            count=config.critic_epochs,
            minibatches=config.minibatches,
        )
        report |= jax.tree.map(lambda x: x.mean(0), reports) | {"importance": m.mean()}
        report |= {"largest_kl": reports["kl"].max()}
        learned = Params(team.sets(vectors), valued)
        return State(learned, optimised, judged.scale, actors, judged.memory), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return team.policy(state.params.actor, greedy=greedy)

    return Algorithm(init, step, policy)


def curvature(
    function: Callable[[Float[Array, "P"]], Float[Array, ""]], point: Float[Array, "P"], damping: Real
) -> Callable[[Float[Array, "P"]], Float[Array, "P"]]:
    """``v → ∇²f v + damping v`` at ``point``: the derivative of the gradient along v."""
    gradient = jax.grad(function)
    return lambda v: jax.jvp(gradient, (point,), (v,))[1] + damping * v


def conjugate_gradients(
    product: Callable[[Float[Array, "P"]], Float[Array, "P"]], b: Float[Array, "P"], steps: int
) -> tuple[Float[Array, "P"], Float[Array, "P"]]:
    """x with ``product(x) ≈ b`` for a symmetric positive product, and what is left, b − product(x).

    Hestenes and Stiefel 1952.
    """

    def step(carry: tuple[Any, Any, Any], _: None) -> tuple[tuple[Any, Any, Any], None]:
        x, left, direction = carry
        squared, along = left @ left, product(direction)
        size = squared / jnp.maximum(direction @ along, 1e-30)
        size = jnp.where(squared > SOLVED, size, 0.0)  # once solved, what is left is rounding
        x, left = x + size * direction, left - size * along
        direction = left + (left @ left) / jnp.maximum(squared, 1e-30) * direction
        return (x, left, direction), None

    (x, left, _), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b), length=steps)
    return x, left
