"""Oryx: implicit constraint Q-learning of a team that acts in turn, on a sequence model that retains.

    encoder: ô_1..N of all o_1..N, each retaining all, and the steps before
    decoder: π(a_i | ô, a_{<i}) and Q(ô, a_{<i}, a_i), "before" in an order of agents
    repeat, with B recorded stretches of steps (o, a, r, o', a') and a random order
        ρ_i = softmax over the batch of Q̄_i(o', a'_{≤i}) / T_v, times its size
        descend c ½ (r + γ ρ_i Q̄_i(o', a'_{≤i}) − Q_i(o, a_{≤i}))²
        A_i = Q_i(o, a_{≤i}) − Σ_a π(a | ô, a_{<i}) Q_i(o, a_{<i}, a)
        descend −Σ_i [softmax over the batch of A_i / T_p, times its size] log π(a_i | ô, a_{<i})
        Q̄ ← Q̄ + τ (Q − Q̄)

Source: Formanek et al. 2025 (arXiv 2505.22151): ICQ (Yang et al. 2021) on Sable (Mahjoub et al. 2025).
The policy is of joint actions: where the data hold (0, 1) and (1, 0) and nothing else, so does what it
draws, which no policies that choose each by itself can do. It is centralised: agents are told what
others see and have chosen.

One network learns all orders, and acts in that of the agents' numbers; tokens of actions carry the
index of who chose them, besides that of their reader. Without memory every step stands for itself.

Differs from the published code: where an episode was cut off, Q̄ is that of what the first in the order
would do, in its mean, given the true final observation (for that nobody's action has to be known); A_i
of continuous actions is less the value of the policy's likeliest action, where theirs is less Q̄_i of
the same action, nearly 0; and the dead enter no sum. What else differs in the model is said of Sable.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_divides, check_range, require, struct
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.distributions import log_probabilities, mean_and_deviation, taken
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks import retention, sequence
from jaxmarl_tad.networks.net import network
from jaxmarl_tad.offline import WINDOW, Lesson, descended, followed, lesson, relative
from jaxmarl_tad.offline.diagnostics import of_weights, team_of, watch
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.targets import beyond_death
from jaxmarl_tad.types import Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Observation, Spec


@struct
class Config:
    """Settings of Oryx."""

    total_steps: int = 1_000
    """Gradient steps of one member."""
    batch: int = 64
    """Recorded stretches in each gradient step; all steps if there are no more."""
    window: int | None = None
    """Steps of a stretch; 20 with memory and 2 without unless given, for the action that came next."""
    policy_temperature: Real = 0.1
    """T_p, in units of reward; positive."""
    value_temperature: Real = 1_000.0
    """T_v, in units of reward; positive."""
    value_coef: Real = 1.0
    """Weight c of the error of Q."""
    lr: Real = 4e-3
    """Adam's learning rate in the first gradient step."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    target_update: Real = 0.05
    """Share of the way that the target network goes in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    memory: Literal["none", "retention"] = "none"
    """Whether what is retained outlasts a step."""
    decay: Real = 1.0
    """Factor of each head's κ, which lies between 1 − 1/32 and 1 − 1/512, in [0, 1]."""
    sharing: Literal["full", "full_id"] = "full_id"
    """One network for all, told who is who unless ``full``."""
    embed: int = 16
    """Width of every layer."""
    heads: int = 1
    """Heads of each retention; divides ``embed``."""
    layers: int = 1
    """Blocks of encoder and decoder each."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        require(min(self.batch, self.embed, self.layers) >= 1, "oryx: sizes must be positive.")
        check_divides(self, "heads", "embed")
        check_range(self, gamma=(0, 1), target_update=(0, 1), decay=(0, 1), lr_end=(0, 1))
        check_range(self, policy_temperature=(1e-6, float("inf")))
        check_range(self, value_temperature=(1e-6, float("inf")))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    least = 1 if spec.horizon == 1 else 2
    require(
        config.window is None or config.window >= least,
        f"oryx: window={config.window} must be at least {least}, to hold the action that came next.",
    )
    usual = least if config.memory == "none" else WINDOW
    return {"window": usual if config.window is None else config.window}


class Params(NamedTuple):
    """All parameters: one part, whose gradient is clipped as a whole."""

    network: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Params


class Model(NamedTuple):
    """Policy and Q of a team that acts in turn."""

    init: Any
    outputs: Any
    """``(params, lesson, order)``: what makes π, and what makes Q, ``[T + 1, B, N, K]`` each."""
    worth: Any
    """``(params, made, action)``: Q of one action of each agent, from what makes it."""
    mean: Any
    """``(params, made, out, legal)``: Q in the policy's mean, or of its likeliest action of numbers."""
    policy: Any


def model(config: Config, spec: Spec) -> Model:
    """The sequence model that ``config`` describes."""
    n, width, heads, layers = spec.n_agents, config.embed, config.heads, config.layers
    head = distributions.head("tanh_gaussian", spec)
    numbers = spec.n_actions if spec.discrete else spec.action_dim
    split = spec.n_actions if spec.discrete else 2 * spec.action_dim  # the policy's outputs, then Q's
    valued = spec.n_actions if spec.discrete else width
    of_number = network("mlp", inputs=width + numbers, outputs=1, hidden=(width,), layer_norm=False)
    told, remembers = config.sharing == "full_id", config.memory == "retention"
    decay = retention.decays(heads, config.decay)
    nothing = retention.empty_state(layers, heads, width)

    def signed(shown: Array) -> Array:
        """What agents did, with who it was."""
        if not told:
            return shown
        index = jnp.broadcast_to(jnp.eye(n), (*shown.shape[:-1], n))
        return jnp.concatenate([shown, index], axis=-1)

    def init(key: Key) -> Params:
        mixing = retention.retention_shapes(width)
        encoder_key, decoder_key, value_key = jax.random.split(key, 3)
        sizes = {"width": width, "layers": layers}
        encoder = sequence.init_encoder(encoder_key, mixing, inputs=spec.obs_dim + n * told, **sizes)
        sizes |= {"inputs": 1 + numbers + 2 * n * told, "outputs": split + valued}
        made = {"encoder": encoder, "decoder": sequence.init_decoder(decoder_key, mixing, **sizes)}
        return Params(made if spec.discrete else made | {"value": of_number.init(value_key)})

    def outputs(params: Params, seen: Lesson, order: Array) -> tuple[Array, Array]:
        alive, first = seen.seen.alive[..., order], seen.first
        rows = sequence.seen(seen.seen.agents, seen.seen.alive, told)[..., order, :]
        action = seen.action
        shown = jax.nn.one_hot(action, numbers) if spec.discrete else action
        if not spec.discrete:
            shown = jnp.where(seen.now.legal, shown, 0.0)
        shown = jnp.where(seen.valid[..., None, None], shown, 0.0)
        shown = jnp.concatenate([shown, jnp.zeros_like(shown[:1])])  # not known in the last row
        tokens = sequence.said(signed(shown)[..., order, :], alive, False)
        if told:
            reader = jnp.broadcast_to(jnp.eye(n)[order], (*alive.shape, n))
            tokens = jnp.concatenate([tokens, reader], axis=-1)
        recorded, length = alive.shape, first.shape[0]
        if not remembers:  # every step is an episode of its own
            alone = lambda x: x.reshape(1, -1, *x.shape[2:])  # noqa: E731
            rows, tokens, alive, first = jax.tree.map(alone, (rows, tokens, alive, first))
            first, length = jnp.ones_like(first), 1
        own = params.network
        everybody = retention.chunkwise(alive, first, decay, causal=False, chunk=length)
        h, _, _ = sequence.encode(own["encoder"], everybody, (), rows)
        counts = sequence.counted(alive)
        before = retention.chunkwise(counts, first, decay, causal=True, chunk=length)
        out, _ = sequence.decode(own["decoder"], before, ((), ()), tokens, h)
        out = out.reshape(*recorded, -1)[..., jnp.argsort(order), :]
        return out[..., :split], out[..., split:]

    def worth(params: Params, made: Array, action: Array) -> Array:
        if spec.discrete:
            return taken(made, action)
        told = jnp.concatenate([made, action], axis=-1)
        return of_number.apply(params.network["value"], (), told)[0][..., 0]

    def mean(params: Params, made: Array, out: Array, legal: Array) -> Array:
        if spec.discrete:
            return jnp.sum(jnp.exp(log_probabilities(out, legal)) * made, axis=-1)
        likeliest = jnp.tanh(mean_and_deviation(out)[0])
        return worth(params, made, jnp.where(legal, likeliest, 0.0))

    def start() -> Memory:
        return (nothing, (nothing, nothing)) if remembers else ()

    def policy(params: Params, *, greedy: bool) -> Policy:
        own = params.network

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            past, before = memory if remembers else ((), (nothing, nothing))
            rows = sequence.seen(observation.agents, observation.alive, told)
            together = retention.one_step(observation.alive, decay)
            h, _, past = sequence.encode(own["encoder"], together, past, rows)

            def read(memory: Memory, token: Any, counts: Any, agent: Any) -> tuple[Any, Memory]:
                mix = retention.one_token(counts, heads)
                out, memory = sequence.decode(own["decoder"], mix, memory, token, h[agent])
                return out[..., :split], memory

            def choose(drawn: Any, outputs: Any, legal: Any) -> tuple[Any, Any, Any]:
                noise, index = drawn
                action, extras = head.decide(noise, outputs, legal, greedy)
                chosen = extras.get("chosen", action)
                shown = jax.nn.one_hot(chosen, numbers) if spec.discrete else head.shown(chosen)
                shown = shown if spec.discrete else jnp.where(legal, shown, 0.0)
                return action, extras, jnp.concatenate([shown, index]) if told else shown

            action, extras, after = sequence.choose_in_turn(
                read,
                jax.tree.map(lambda state: decay[:, None, None] * state, before),
                choose,
                (head.noise(key, n), jnp.eye(n)),
                observation.legal,
                observation.alive,
                numbers + n * told,
                told,
            )
            return action, (past, after) if remembers else (), extras

        return Policy(start=start, act=act, execution="centralised")

    return Model(init, outputs, worth, mean, policy)


def make(config: Config, data: Dataset) -> Algorithm:
    """The learner of Oryx on ``data``; ``config`` as returned by :func:`resolve`."""
    spec = data.spec
    assert config.window is not None
    window, team = config.window, model(config, spec)
    head = distributions.head("tanh_gaussian", spec)
    optimiser, compared = adam(config.max_grad_norm), watch(data, config.gamma)
    last = jax.lax.stop_gradient

    def loss(params: Params, target: Params, seen: Lesson, order: Array) -> tuple[Array, Metrics]:
        now, ahead = seen.now, jax.tree.map(lambda x: x[1:], seen.seen)
        out, made = team.outputs(params, seen, order)
        _, delayed = team.outputs(target, seen, order)
        action = seen.action
        q = team.worth(params, made[:-1], action)
        # The value of the actions that came next, or of the first agent's where none are recorded.
        of_taken = team.worth(target, delayed[:-1], action)
        of_taken = jnp.concatenate([of_taken, of_taken[-1:]])[1:]
        recorded = jnp.concatenate([~seen.last[:-1], jnp.zeros_like(seen.last[:1])])
        used = (recorded & seen.valid & ~seen.terminated)[..., None] & ahead.alive
        ratio = relative(of_taken / config.value_temperature, used)
        of_policy = team.mean(target, delayed[1:], out[1:], ahead.legal)
        leader = order[jnp.argmax(ahead.alive[..., order], axis=-1)]
        led = jnp.take_along_axis(of_policy, leader[..., None], axis=-1)
        beyond = jnp.where(recorded[..., None], beyond_death(ratio * of_taken, ahead.alive), led)
        over = seen.terminated[..., None]
        goal = last(seen.reward[..., None] + jnp.where(over, 0.0, config.gamma * beyond))
        known = seen.counts & (recorded | seen.last)[..., None]
        q_loss = masked_mean(0.5 * (goal - q) ** 2, known)

        advantage = last(q - team.mean(params, made[:-1], out[:-1], now.legal))
        weight = relative(advantage / config.policy_temperature, seen.counts)
        chosen = action if spec.discrete else jnp.arctanh(action)
        log_prob = head.judge(out[:-1], now.legal, chosen)[0]
        policy_loss = masked_mean(-weight * log_prob, seen.counts)
        report = {
            "q_loss": q_loss,
            "q": masked_mean(q, seen.counts),
            "advantage": masked_mean(advantage, seen.counts),
            **of_weights(weight, seen.counts),
            **compared.of_value(seen, team_of(q, seen.counts)),
            **compared.of_policy(seen, log_prob),
        }
        return policy_loss + config.value_coef * q_loss, report

    def init(key: Key) -> State:
        params = team.init(key)
        return State(params, params, Params(optimiser.init(params.network)))

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        lesson_key, order_key = jax.random.split(key)
        seen = lesson(data, lesson_key, config.batch, window)
        order = jax.random.permutation(order_key, spec.n_agents)
        slopes, report = jax.grad(loss, has_aux=True)(state.params, state.target, seen, order)
        lr = config.lr * (1 - (1 - config.lr_end) * progress)
        params, optimisers = descended(optimiser, slopes, state.optimiser, state.params, (lr,))
        return State(params, followed(state.target, params, config.target_update), optimisers), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return team.policy(state.params, greedy=greedy)

    return Algorithm(init, step, policy)
