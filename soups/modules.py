"""Which part of a model a tensor belongs to, from its name alone."""


def module_of(name: str) -> str:
    """Return the module of a tensor: up to the first number in its name, else without the last part.

    >>> module_of("encoder.layers.3.self_attn.q_proj.weight"), module_of("head.weight"), module_of("scale")
    ('encoder.layers.3', 'head', 'scale')
    """
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    kept = parts[: number + 1] if number is not None else parts[:-1]
    return ".".join(kept) or name
