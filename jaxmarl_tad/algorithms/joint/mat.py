"""MAT and MAT-Dec: the multi-agent transformer, PPO on a policy that decides agent after agent.

    encoder: ô_1..N, V_1..N = of all o_1..N, each attending to all
    decoder: π(a_i | ô_1..N, a_{<i}), each attending to the actions before its own
    repeat
        collect T steps in E environments, one agent at a time
        G_i = λ-return of V_i;   Â_i = G_i − V_i, standardised over living agents
        for K epochs, for each minibatch of environments, all agents in one pass:
            ρ_i = π(a_i | ô, a_{<i}) / π_old(a_i | ô, a_{<i})
            ascend   mean_i min(ρ_i Â_i, clip(ρ_i, 1 ± ε) Â_i) + c_H H(π(· | ô, a_{<i}))
            descend  the clipped Huber loss of V_i on normalised G_i

Source: Wen et al. 2022 (arXiv 2205.14953), algorithm 1, eqs. 4-5, and its published code, whose value
per agent is kept. MAT-Dec keeps the encoder as critic and has one network per agent on its own
observation for the decoder: ``decoder="autoregressive" | "independent"``. It executes without the
others. Differs in that the dead are left out, in that tokens of actions carry the index of their
reader where ``sharing`` tells it, in initial weights (no layer but the last begins small), in that
minibatches are drawn over environments, and in ReLU for the GELU of MAT-Dec's agents.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmarl_tad import distributions
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.losses import clipped_surrogate, clipped_value_loss, masked_mean, standardise
from jaxmarl_tad.networks import attention
from jaxmarl_tad.networks.net import agent_inputs, beside, network, with_spread
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
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import beyond_death, lambda_returns, next_values
from jaxmarl_tad.types import Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of MAT and MAT-Dec."""

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
    decoder: Literal["autoregressive", "independent"] = "autoregressive"
    """Whether agents decide knowing their predecessors' actions (MAT) or each alone (MAT-Dec)."""
    memory: Literal["none"] = "none"
    sharing: Mode = "full_id"
    """Of MAT-Dec's agents; MAT is one network for all, told who is who unless ``full``."""
    embed: int = 16
    """Width of every layer."""
    heads: int = 1
    """Heads of each attention; divides ``embed``."""
    layers: int = 1
    """Blocks of encoder and decoder each."""
    head: distributions.Family = "gaussian"
    """How continuous actions are distributed: as drawn, or bounded by tanh."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        require(min(self.envs, self.epochs, self.minibatches) >= 1, "mat: sizes must be positive.")
        check_divides(self, "minibatches", "envs")
        check_divides(self, "heads", "embed")
        check_range(self, gamma=(0, 1), lam=(0, 1), clip=(0, 1))
        check_range(self, entropy_coef=(0, jnp.inf), entropy_end=(0, 1), lr_end=(0, 1))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    return {"steps": resolve_steps(config.steps, spec)}


class Params(NamedTuple):
    """All parameters: one part, whose gradient is clipped as a whole."""

    network: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    scale: Scale
    actors: Actors


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


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of MAT or MAT-Dec on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    n, width, heads, layers = spec.n_agents, config.embed, config.heads, config.layers
    assert config.steps is not None
    steps = config.steps
    family = distributions.head(config.head, spec)

    # The encoder sees all living agents' views.
    told = config.sharing != "full"
    mixing = attention.attention_shapes(width)
    encoder_inputs = spec.obs_dim + n * told

    def encoded(params: Params, rows: Any, alive: Any) -> tuple[Any, Any]:
        """Representations ``[..., N, W]`` and values ``[..., N]``."""
        among = attention.among(alive, heads)
        h, value, _ = encode(params.network["encoder"], among, (), seen(rows, alive, told))
        return h, value

    # The decoder of MAT: all agents in one pass, given whose actions came before, or in turn.
    autoregressive = config.decoder == "autoregressive"
    numbers = spec.n_actions if spec.discrete else spec.action_dim

    def shown(chosen: Any) -> Any:
        """What successors are told of choices ``[..., numbers]``."""
        return jax.nn.one_hot(chosen, numbers) if spec.discrete else family.shown(chosen)

    def read(params: Params, mix: Any, memory: Memory, token: Any, h: Any) -> tuple[Any, Memory]:
        """Outputs, for a token or for all, and the cache."""
        own = params.network["decoder"]
        outputs, memory = decode(own["mean"], mix, memory, token, h)
        return (outputs if spec.discrete else beside(outputs, own["spread"])), memory

    # The agents of MAT-Dec, each of which sees its own row alone.
    share = sharing(config.sharing, n)
    view, inputs = agent_inputs("mlp", spec, share.identity)
    agents = jnp.arange(n)
    actor = network("mlp", inputs=inputs, outputs=family.outputs, hidden=(width, width), gain=0.01)
    if not spec.discrete:
        actor = with_spread(actor, family.outputs, distributions.FIRST_SPREAD)
    act_all, act_rows = over_agents(actor.apply, share), over_rows(actor.apply, share)
    view_all = jax.vmap(view)

    def decoder_init(key: Key) -> Any:
        if not autoregressive:
            return init_sets(actor.init, key, share)
        inputs = 1 + numbers + n * told
        sizes = {"outputs": family.outputs, "width": width, "layers": layers}
        made = {"mean": init_decoder(key, mixing, inputs=inputs, **sizes)}
        first = jnp.full(family.outputs, distributions.FIRST_SPREAD, jnp.float32)
        return made if spec.discrete else made | {"spread": first}

    def outputs(params: Params, h: Any, batch: Batch) -> Any:
        """What the choices of a batch were drawn from ``[T, E, N, K]``: teacher forcing."""
        if not autoregressive:
            views = jax.vmap(jax.vmap(lambda rows: view_all(rows, agents)))(batch.rows)
            return act_rows(params.network["decoder"], (), views, 2)[0]
        tokens = said(shown(batch.action), batch.alive, told)
        return read(params, attention.causal(counted(batch.alive), heads), ((), ()), tokens, h)[0]

    optimiser = adam(config.max_grad_norm)

    def loss(params: Params, batch: Batch, memory: Memory, entropy_coef: Real) -> tuple[Any, Metrics]:
        h, value = encoded(params, batch.rows, batch.alive)
        log_prob, entropy = family.judge(outputs(params, h, batch), batch.legal, batch.action)
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
        encoder = init_encoder(encoder_key, mixing, inputs=encoder_inputs, width=width, layers=layers)
        params = Params({"encoder": encoder, "decoder": decoder_init(decoder_key)})
        return State(
            params=params,
            optimiser=Params(optimiser.init(params.network)),
            scale=init_scale(),
            actors=begin(env, policy_of(params, greedy=False), begin_key, config.envs),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        behaviour = policy_of(state.params, greedy=False)
        actors, recorded = rollout(env, behaviour, collect_key, state.actors, steps)

        def value_of(observation: Observation) -> Any:
            return encoded(state.params, observation.agents, observation.alive)[1]

        def look_ahead(rows: Any) -> Any:
            """V of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            return value_of(recorded.next if rows is None else taken(recorded.next, rows))

        alive = recorded.observation.alive
        value = value_of(recorded.observation)
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
        )
        entropy_coef = config.entropy_coef * (1 - (1 - config.entropy_end) * progress)
        params, optimisers, report = improve(
            lambda p, b, m: loss(p, b, m, entropy_coef),
            optimiser,
            state.params,
            state.optimiser,
            batch,
            (),
            learn_key,
            lr=config.lr * (1 - (1 - config.lr_end) * progress),
            count=config.epochs,
            minibatches=config.minibatches,
        )
        return State(params, optimisers, scale, actors), report

    def act_in_turn(params: Params, key: Key, observation: Observation, greedy: bool) -> Any:
        """One joint action, each agent's given those before, and what is told of it."""
        h, _ = encoded(params, observation.agents, observation.alive)

        def next_read(cache: Memory, token: Any, counts: Any, agent: Any) -> tuple[Any, Memory]:
            return read(params, attention.cached(agent, counts, heads), cache, token, h[agent])

        def choose(noise: Any, outputs: Any, legal: Any) -> tuple[Any, Any, Any]:
            action, extras = family.decide(noise, outputs, legal, greedy)
            return action, extras, shown(extras.get("chosen", action))

        empty = attention.empty_cache(layers, n, width)
        action, extras, _ = choose_in_turn(
            next_read,
            (empty, empty),
            choose,
            family.noise(key, n),
            observation.legal,
            observation.alive,
            numbers,
            told,
        )
        return action, extras

    def policy_of(params: Params, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            if autoregressive:
                action, extras = act_in_turn(params, key, observation, greedy)
                return action, memory, extras
            views = view_all(observation.agents, agents)
            outputs, _ = act_all(params.network["decoder"], (), views)
            action, extras = family.decide(family.noise(key, n), outputs, observation.legal, greedy)
            return action, memory, extras

        execution = "centralised" if autoregressive else "decentralised"
        return Policy(start=lambda: (), act=act, execution=execution)

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, greedy=greedy)

    return Algorithm(init, step, policy)
