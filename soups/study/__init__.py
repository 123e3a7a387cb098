"""Studies: a YAML file names trainings, mixtures, baselines and an evaluation; one command does all and reports.

Reading order: `schema` (what a study says), `plan` (what has to be done), `parts` and `scores` (doing it once),
`evidence` and `collect` (what it shows), `page` (for people). A study knows models by commands that train them and
functions that score them; `soups.trainers` has two such commands.
"""
