"""Trainers of studies that no other package brings: `train.command` names them, as it may name any program.

`grpo` tunes an adapter of a causal language model on rewards, `ppo` a policy of a simulated robot. Each reads one YAML
file, takes `key.sub=value` on top, and starts over when it is run again: a training is a few minutes.
"""
