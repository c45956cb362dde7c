"""Records transitions of JaxMARL's particle environments for `test_mpe.py`.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install jaxmarl==0.2.0
    /tmp/peer/bin/python tests/envs/record_jaxmarl.py

In half of the episodes everything starts in a quarter of the plane, so that bodies collide. What is
written, per game and prefixed by its name, for E episodes of T steps: `position`, `velocity`
`[T + 1, E, N, 2]`, `landmark [E, L, 2]`, `goal [E, G]`, `action [T, E, N]`, `reward [T, E, N]`, and the
agents' observations `view_i [T / 5 + 1, E, O_i]` at every fifth step.
"""

import pathlib

import jax
import jax.numpy as jnp
import jaxmarl
import numpy as np

GAMES = {
    "spread": ("MPE_simple_spread_v3", {}),
    "spread_5": ("MPE_simple_spread_v3", {"num_agents": 5, "num_landmarks": 5}),
    "speaker_listener": ("MPE_simple_speaker_listener_v4", {}),
    "reference": ("MPE_simple_reference_v3", {}),
}
EPISODES, STEPS, EVERY = 16, 25, 5
OUT = pathlib.Path(__file__).parent / "data" / "jaxmarl_mpe.npz"


def record(name: str, options: dict) -> dict[str, np.ndarray]:
    env = jaxmarl.make(name, **options)
    agents = env.agents

    def seen(observations):
        return [observations[agent] for agent in agents]

    def episode(key, scale):
        reset_key, action_key = jax.random.split(key)
        _, state = env.reset(reset_key)
        state = state.replace(p_pos=state.p_pos * scale, done=jnp.zeros((), bool))
        first = (state.p_pos, state.p_vel, seen(env.get_obs(state)))

        def step(state, t):
            keys = jax.random.split(jax.random.fold_in(action_key, t), len(agents))
            actions = {a: env.action_space(a).sample(k) for a, k in zip(agents, keys, strict=True)}
            observations, state, rewards, _, _ = env.step_env(action_key, state, actions)
            kept = (state.p_pos, state.p_vel, seen(observations))
            chosen = jnp.stack([actions[a] for a in agents])
            return state, (kept, chosen, jnp.stack([rewards[a] for a in agents]))

        _, (kept, action, reward) = jax.lax.scan(step, state, jnp.arange(STEPS))
        kept = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, kept)
        goal = jnp.zeros(0, int) if state.goal is None else jnp.atleast_1d(state.goal)
        return *kept, action, reward, goal

    keys = jax.random.split(jax.random.key(0), EPISODES)
    scales = jnp.where(jnp.arange(EPISODES) % 2 == 0, 1.0, 0.25)
    *timed, goal = jax.device_get(jax.jit(jax.vmap(episode))(keys, scales))
    position, velocity, views, action, reward = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), timed)
    n = len(agents)
    return {
        "position": position[:, :, :n],
        "velocity": velocity[:, :, :n],
        "landmark": position[0, :, n:],
        "goal": goal.astype(np.int8),
        "action": action.astype(np.int8),
        "reward": reward,
        **{f"view_{i}": view[::EVERY] for i, view in enumerate(views)},
    }


def main() -> None:
    recorded = {
        f"{game}/{part}": values
        for game, (name, options) in GAMES.items()
        for part, values in record(name, options).items()
    }
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **recorded)
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
