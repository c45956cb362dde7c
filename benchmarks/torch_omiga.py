"""OMIGA in plain PyTorch: the losses, networks, batch and optimisers of ours, one member at a time.

What ``offline.py`` compares with, and nothing else of the library. Written as a PyTorch user would:
modules, three Adam optimisers with gradients clipped to a norm, the data as tensors in memory, no
evaluation. For discrete actions without memory.
"""

from typing import Any

import numpy as np


class Missing(Exception):
    """PyTorch is not installed."""


def load() -> Any:
    """PyTorch, or what to do about it."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        told = "the comparison needs PyTorch (pip install torch); only our side is measured."
        raise Missing(told) from error
    return torch


class Member:
    """One learner; ``compiled`` puts its losses through ``torch.compile``.

    ``params`` are the parameters that ours begins with, so that both sides can be compared number by
    number.
    """

    def __init__(self, data: Any, config: Any, params: Any, *, compiled: bool = False) -> None:
        torch = self.torch = load()
        spec, self.config = data.spec, config
        tensor = lambda x: torch.tensor(np.asarray(x))  # noqa: E731
        if config.network == "table":  # the place of the row's one; each agent has its own rows
            places = np.arange(spec.n_agents) * spec.obs_dim
            self.inputs = tensor(np.argmax(data.agents, axis=-1) + places)
            self.state = tensor(np.argmax(data.state, axis=-1))
        else:
            eye = np.eye(spec.n_agents, dtype=np.float32)
            identity = np.broadcast_to(eye, (len(data.reward), *eye.shape))
            self.inputs = tensor(np.concatenate([data.agents, identity], axis=-1))
            self.state = tensor(data.state)
        self.legal, self.alive = tensor(data.legal), tensor(data.alive)
        self.action, self.reward = tensor(data.action).long(), tensor(data.reward)
        self.terminated, self.rows = tensor(data.terminated), tensor(data.rows).long()
        nets = {
            "policy": [params.policy],
            "q": [params.q["own"], params.q["mixer"]],
            "v": [params.v],
        }
        self.nets = {name: [self._net(p) for p in parts] for name, parts in nets.items()}
        self.target = {name: [self._net(p) for p in nets[name]] for name in ("q", "v")}
        self.groups = {
            name: [p for net in parts for p in net.parameters()] for name, parts in self.nets.items()
        }
        self.optimisers = {
            name: torch.optim.Adam(group, lr=float(config.lr), eps=1e-5)
            for name, group in self.groups.items()
        }
        self.losses = torch.compile(self._losses) if compiled else self._losses
        self.generator = torch.Generator().manual_seed(0)

    def _net(self, params: Any) -> Any:
        """A multilayer perceptron, or a table, with these weights."""
        torch, layers = self.torch, []
        if not isinstance(params, dict):
            table = np.array(params).reshape(params.shape[-2:])
            return torch.nn.Embedding.from_pretrained(torch.tensor(table), freeze=False)
        parts = params["params"]
        for name in sorted(parts, key=lambda name: (name == "out", name)):
            kernel, bias = (np.asarray(parts[name][k]) for k in ("kernel", "bias"))
            kernel, bias = kernel.reshape(kernel.shape[-2:]), bias.reshape(bias.shape[-1:])
            layer = torch.nn.Linear(*kernel.shape)
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(kernel.T.copy()))
                layer.bias.copy_(torch.tensor(bias.copy()))
            layers += [layer, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1])

    def _losses(self, batch: tuple[Any, ...]) -> tuple[Any, Any, Any, Any, Any]:
        torch, config = self.torch, self.config
        seen, following, state, after, legal, alive, alive_after, action, reward, terminated = batch
        alpha, top = float(config.alpha), float(config.largest_z)

        def weights(net: Any, state: Any, alive: Any) -> tuple[Any, Any]:
            out = net(state)
            return torch.where(alive, (1 + out[:, :-1]).abs(), 0.0), out[:, -1]

        def taken(net: Any) -> Any:
            return net(seen).gather(-1, action[..., None])[..., 0]

        def mean(x: Any) -> Any:
            return torch.where(alive, x, 0.0).sum() / alive.sum()

        own, mixer = self.nets["q"]
        own_bar, mixer_bar = self.target["q"]
        with torch.no_grad():
            w, b = weights(mixer_bar, after, alive_after)
            beyond = (w * self.target["v"][0](following)[..., 0]).sum(-1) + b
            goal = reward + torch.where(terminated, 0.0, float(config.gamma) * beyond)
            w_bar, _ = weights(mixer_bar, state, alive)
            q_bar = taken(own_bar)
        w, b = weights(mixer, state, alive)
        q_loss = 0.5 * ((goal - (w * taken(own)).sum(-1) - b) ** 2).mean()
        value = self.nets["v"][0](seen)[..., 0]
        z = w_bar * (q_bar - value) / alpha
        grown = z.clamp(max=top).exp() * (1 + (z - top).clamp(min=0.0))
        v_loss = mean(grown + w_bar * value / alpha)
        logits = torch.where(legal, self.nets["policy"][0](seen), -1e9)
        log_prob = torch.log_softmax(logits, -1).gather(-1, action[..., None])[..., 0]
        policy_loss = -mean(grown.detach() * log_prob)
        return q_loss, v_loss, policy_loss, mean(grown.detach()), mean(log_prob.detach())

    def batch(self, rows: Any) -> tuple[Any, ...]:
        """The steps in these rows."""
        seen, after = rows, rows + 1
        return (
            self.inputs[seen], self.inputs[after], self.state[seen], self.state[after],
            self.legal[seen], self.alive[seen], self.alive[after],
            self.action[seen], self.reward[seen], self.terminated[seen],
        )  # fmt: skip

    def told(self, rows: Any) -> dict[str, float]:
        """What a step on these rows reports."""
        with self.torch.no_grad():
            q_loss, _, _, exp_z, log_prob = self._losses(self.batch(rows))
        return {"q_loss": float(q_loss), "exp_z": float(exp_z), "log_prob": float(log_prob)}

    def step(self, progress: float, rows: Any = None) -> None:
        """One gradient step of each group, and the targets' share of the way; ``rows`` if given."""
        torch, config = self.torch, self.config
        if rows is None:
            drawn = torch.randint(len(self.rows), (config.batch,), generator=self.generator)
            rows = self.rows[drawn]
        q_loss, v_loss, policy_loss, *_ = self.losses(self.batch(rows))
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        (q_loss + v_loss + policy_loss).backward()
        for name, optimiser in self.optimisers.items():
            torch.nn.utils.clip_grad_norm_(self.groups[name], float(config.max_grad_norm))
            optimiser.param_groups[0]["lr"] = float(config.lr) * (1 - progress)
            optimiser.step()
        with torch.no_grad():
            for name, parts in self.target.items():
                old = [p for net in parts for p in net.parameters()]
                torch._foreach_lerp_(old, self.groups[name], float(config.target_update))
