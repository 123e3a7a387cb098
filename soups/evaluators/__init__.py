"""Evaluators that ship, one file each: functions of a model, another program, a causal language model.

Each is named on the command line like one's own: ``--evaluator soups.evaluators.causal_lm:evaluator``.
"""
