"""End-to-end vectorised training for cooperative multi-agent reinforcement learning in JAX."""

from jaxmarl_tad.algorithms import algorithm, algorithms, config
from jaxmarl_tad.distill import distill
from jaxmarl_tad.resume import load, resume
from jaxmarl_tad.run import Trained, evaluate, run
from jaxmarl_tad.train import train
from jaxmarl_tad.types import Algorithm, Policy, Transition
from tad_envs import Environment, environments, make, solve

__all__ = [
    "Algorithm",
    "Environment",
    "Policy",
    "Trained",
    "Transition",
    "algorithm",
    "algorithms",
    "config",
    "distill",
    "environments",
    "evaluate",
    "load",
    "make",
    "resume",
    "run",
    "solve",
    "train",
]
