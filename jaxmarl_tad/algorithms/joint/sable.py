"""Sable: PPO on a sequence model that retains, over agents and over time.

    encoder: ô_1..N, V_1..N = of all o_1..N, each retaining all, and the steps before
    decoder: π(a_i | ô_1..N, a_{<i}), each retaining the actions before its own, and those of the past
    repeat
        collect T steps in E environments, one agent at a time, from states S that hold the past
        G_i = λ-return of V_i;   Â_i = G_i − V_i, standardised over living agents
        for K epochs, for each minibatch of environments, chunks of steps in one pass each:
            ρ_i = π(a_i | ô, a_{<i}) / π_old(a_i | ô, a_{<i})
            ascend   mean_i min(ρ_i Â_i, clip(ρ_i, 1 ± ε) Â_i) + c_H H(π(· | ô, a_{<i}))
            descend  the clipped Huber loss of V_i on normalised G_i

Source: Mahjoub et al. 2025 (arXiv 2410.01706), algorithm 1. Acting costs the same for every agent and
every step, however many there were. S is 0 where an episode begins, and κ decays it from step to step,
not from agent to agent. Without memory S is 0 at each step, which is the paper's feed-forward variant.
Differs in that the dead are left out, in that tokens of actions carry the index of their reader where
``sharing`` tells it, in that the clock is not shown (κ tells what is recent), and in blocks of MAT's
form: layer norms and GELU in place of root-mean-square norms and SwiGLU.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.losses import clipped_surrogate, clipped_value_loss, masked_mean, standardise
from jaxmarl_tad.networks import retention
from jaxmarl_tad.networks.net import beside, unroll
from jaxmarl_tad.networks.sequence import (
    choose_in_turn,
    counted,
    decode,
    encode,
    init_decoder,
    init_encoder,
    said,
    seen,
)
from jaxmarl_tad.normalise import Scale, init_scale, normalised, restored, update_scale
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout, taken
from jaxmarl_tad.targets import beyond_death, lambda_returns, next_values
from jaxmarl_tad.types import Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec

_LONGEST_CHUNK = 32


@struct
class Config:
    """Settings of Sable."""

    total_steps: int = 6_400
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 128
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    epochs: int = 2
    """Passes over each batch."""
    minibatches: int = 1
    """Parts of each pass; divides ``envs``."""
    lr: Real = 4.5e-3
    """Adam's learning rate in the first iteration."""
    lr_end: Real = 0.1
    """Share of ``lr`` that is left in the last iteration; it falls linearly."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.95
    """λ of the λ-return, in [0, 1]."""
    clip: Real = 0.2
    """ε of the clipped ratio and of the clipped value."""
    entropy_coef: Real = 1.5
    """Weight of the entropy bonus in the first iteration: nobody should settle on an action before
    successors have learned to answer it."""
    entropy_end: Real = 0.02
    """Share of ``entropy_coef`` that is left in the last iteration; it falls linearly."""
    huber_delta: Real = 10.0
    """Error beyond which the value loss is linear, in units of normalised return."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    memory: Literal["none", "retention"] = "none"
    """Whether S outlasts a step."""
    decay: Real = 1.0
    """Factor of each head's κ, which lies between 1 − 1/32 and 1 − 1/512, in [0, 1]."""
    chunk: int | None = None
    """Steps that are learned from at once; divides ``steps``; up to 32 unless given."""
    sharing: Literal["full", "full_id"] = "full_id"
    """One network for all, told who is who unless ``full``."""
    embed: int = 16
    """Width of every layer."""
    heads: int = 1
    """Heads of each retention; divides ``embed``."""
    layers: int = 1
    """Blocks of encoder and decoder each."""
    head: distributions.Family = "gaussian"
    """How continuous actions are distributed: as drawn, or bounded by tanh."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        require(min(self.envs, self.epochs, self.minibatches) >= 1, "sable: sizes must be positive.")
        check_divides(self, "minibatches", "envs")
        check_divides(self, "heads", "embed")
        if self.chunk is not None and self.steps is not None:
            check_divides(self, "chunk", "steps")
        check_range(self, gamma=(0, 1), lam=(0, 1), clip=(0, 1), decay=(0, 1))
        check_range(self, entropy_coef=(0, jnp.inf), entropy_end=(0, 1), lr_end=(0, 1))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    steps = resolve_steps(config.steps, spec)
    longest = min(steps, _LONGEST_CHUNK)
    fitting = max(c for c in range(1, longest + 1) if steps % c == 0)
    return {"steps": steps, "chunk": fitting if config.chunk is None else config.chunk}


class Params(NamedTuple):
    """All parameters: one part, whose gradient is clipped as a whole."""

    network: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    scale: Scale
    actors: Actors


class Retained(NamedTuple):
    """S of every block ``[layers, H, D, D]``, after the last step."""

    encoder: Any
    decoder: Any
    """A pair: of actions among themselves, and of actions as the encoder asks for them."""


class Batch(NamedTuple):
    """What the epochs learn from; leaves ``[T, E, ...]``."""

    rows: Any
    legal: Any
    alive: Any
    action: Any
    log_prob: Any
    advantage: Any
    value: Any
    target: Any
    first: Any


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of Sable on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    n, width, heads, layers = spec.n_agents, config.embed, config.heads, config.layers
    assert config.steps is not None and config.chunk is not None
    steps, chunk = config.steps, config.chunk
    family = distributions.head(config.head, spec)
    numbers = spec.n_actions if spec.discrete else spec.action_dim
    told = config.sharing == "full_id"
    mixing = retention.retention_shapes(width)
    decay = retention.decays(heads, config.decay)
    remembers = config.memory == "retention"
    nothing = retention.empty_state(layers, heads, width)

    def start() -> Memory:
        return Retained(nothing, (nothing, nothing)) if remembers else ()

    def shown(chosen: Any) -> Any:
        """What successors are told of choices ``[..., numbers]``."""
        return jax.nn.one_hot(chosen, numbers) if spec.discrete else family.shown(chosen)

    def read(params: Params, mix: Any, memory: Memory, token: Any, h: Any) -> tuple[Any, Memory]:
        """Outputs, for a token or for all, and what is retained."""
        own = params.network["decoder"]
        outputs, memory = decode(own["mean"], mix, memory, token, h)
        return (outputs if spec.discrete else beside(outputs, own["spread"])), memory

    # Acting: a step of the encoder for all agents, then one step of the decoder for each.
    def look(params: Params, memory: Memory, observation: Observation) -> tuple[Any, Any, Memory]:
        """Representations ``[N, W]``, values ``[N]``, and what the encoder retains."""
        rows = seen(observation.agents, observation.alive, told)
        mix = retention.one_step(observation.alive, decay)
        return encode(params.network["encoder"], mix, memory, rows)

    def policy_of(params: Params, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            past, before = memory if remembers else ((), (nothing, nothing))
            h, _, past = look(params, past, observation)

            def next_read(memory: Memory, token: Any, counts: Any, agent: Any) -> tuple[Any, Memory]:
                return read(params, retention.one_token(counts, heads), memory, token, h[agent])

            def choose(noise: Any, outputs: Any, legal: Any) -> tuple[Any, Any, Any]:
                action, extras = family.decide(noise, outputs, legal, greedy)
                return action, extras, shown(extras.get("chosen", action))

            action, extras, after = choose_in_turn(
                next_read,
                jax.tree.map(lambda state: decay[:, None, None] * state, before),
                choose,
                family.noise(key, n),
                observation.legal,
                observation.alive,
                numbers,
                told,
            )
            return action, Retained(past, after) if remembers else (), extras

        return Policy(start=start, act=act, execution="centralised")

    # Learning: all agents and a chunk of steps in one pass.
    def replay(params: Params, memory: Memory, batch: Batch) -> tuple[Any, Any]:
        """What the choices were drawn from ``[T, E, N, K]``, and values ``[T, E, N]``."""
        rows = seen(batch.rows, batch.alive, told)
        tokens = said(shown(batch.action), batch.alive, told)
        past, before = ((), ((), ()))
        alive, first, length = batch.alive, batch.first, chunk
        if remembers:
            past, before = jax.tree.map(lambda state: jnp.moveaxis(state, 0, 1), memory)
        else:  # every step is an episode of its own
            alone = lambda x: x.reshape(1, -1, *x.shape[2:])  # noqa: E731
            rows, tokens, alive, first = jax.tree.map(alone, (rows, tokens, alive, first))
            first, length = jnp.ones_like(first), 1

        everybody = retention.chunkwise(alive, first, decay, causal=False, chunk=length)
        h, value, _ = encode(params.network["encoder"], everybody, past, rows)
        forced = retention.chunkwise(counted(alive), first, decay, causal=True, chunk=length)
        outputs, _ = read(params, forced, before, tokens, h)
        recorded = batch.alive.shape
        return outputs.reshape(*recorded, outputs.shape[-1]), value.reshape(recorded)

    optimiser = adam(config.max_grad_norm)

    def loss(params: Params, batch: Batch, memory: Memory, entropy_coef: Real) -> tuple[Any, Metrics]:
        outputs, value = replay(params, memory, batch)
        log_prob, entropy = family.judge(outputs, batch.legal, batch.action)
        entropy = masked_mean(entropy, batch.alive)
        ratio = jnp.exp(log_prob - batch.log_prob)
        objective = clipped_surrogate(ratio, batch.advantage, config.clip)
        policy_loss = -masked_mean(objective, batch.alive) - entropy_coef * entropy

        error = clipped_value_loss(value, batch.value, batch.target, config.clip, config.huber_delta)
        value_loss = masked_mean(error, batch.alive)
        report = {"entropy": entropy, "ratio": masked_mean(ratio, batch.alive)}
        report |= {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + value_loss, report

    def init(key: Key) -> State:
        encoder_key, decoder_key = keys(key, 2)
        begin_key = jax.random.fold_in(key, 0)
        sizes = {"width": width, "layers": layers}
        encoder = init_encoder(encoder_key, mixing, inputs=spec.obs_dim + n * told, **sizes)
        sizes |= {"inputs": 1 + numbers + n * told, "outputs": family.outputs}
        decoder = {"mean": init_decoder(decoder_key, mixing, **sizes)}
        if not spec.discrete:
            first = jnp.full(family.outputs, distributions.FIRST_SPREAD, jnp.float32)
            decoder |= {"spread": first}
        params = Params({"encoder": encoder, "decoder": decoder})
        return State(
            params=params,
            optimiser=Params(optimiser.init(params.network)),
            scale=init_scale(),
            actors=begin(env, policy_of(params, greedy=False), begin_key, config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        memory = state.actors.memory
        behaviour = policy_of(state.params, greedy=False)
        actors, recorded = rollout(env, behaviour, collect_key, state.actors, steps)

        def value_after(past: Memory, observation: Observation) -> tuple[Any, Memory]:
            _, value, past = look(state.params, past, observation)
            return value, past

        begun, past = (nothing, memory.encoder) if remembers else ((), ())
        value, pasts = unroll(value_after, begun, past, recorded.observation, recorded.first)

        def look_ahead(rows: Any) -> Any:
            """V of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            told = (pasts, recorded.next)
            past, following = told if rows is None else taken(told, rows)
            return jax.vmap(jax.vmap(lambda p, o: value_after(p, o)[0]))(past, following)

        alive = recorded.observation.alive
        next_value = next_values(value, recorded.truncated, look_ahead, spec.horizon)
        next_value = beyond_death(next_value, recorded.next.alive)
        target = lambda_returns(
            recorded.reward,
            restored(state.scale, next_value),
            recorded.terminated,
            recorded.truncated,
            config.gamma,
            config.lam,
        )
        scale = update_scale(state.scale, target, alive)
        batch = Batch(
            rows=recorded.observation.agents,
            legal=recorded.observation.legal,
            alive=alive,
            action=recorded.extras.get("chosen", recorded.action),
            log_prob=recorded.extras["log_prob"],
            advantage=standardise(target - restored(state.scale, value), alive),
            value=value,
            target=normalised(scale, target),
            first=recorded.first,
        )
        entropy_coef = config.entropy_coef * (1 - (1 - config.entropy_end) * progress)
        params, optimisers, report = improve(
            lambda p, b, m: loss(p, b, m, entropy_coef),
            optimiser,
            state.params,
            state.optimiser,
            batch,
            memory,
            learn_key,
            lr=config.lr * (1 - (1 - config.lr_end) * progress),
            count=config.epochs,
            minibatches=config.minibatches,
        )
        return State(params, optimisers, scale, actors), report

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, greedy=greedy)

    return Algorithm(init, step, policy)
