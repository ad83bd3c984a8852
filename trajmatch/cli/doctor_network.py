"""``trajmatch doctor --network M``: what runs each layer of a network."""

from __future__ import annotations

from typing import Any

from trajmatch.errors import UserError

NOT_TWICE = "not twice differentiable"


def examine_network(
    text: str, in_channels: int, num_classes: int, image_size: int
) -> dict[str, Any]:
    """Looks at a network as a student.

    Args:
        text: Its name, as :func:`trajmatch.networks.specify` takes it.
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.

    Returns:
        What JSON can hold: ``network`` (its spec), ``parameters``, ``runs_by`` (see
        :func:`trajmatch.ops.engine_for`), ``layers`` (``name``, ``type``, ``parameters``, ``runs``:
        ``"engine"``, ``"autograd"`` or ``"not twice differentiable"``, and ``obstacle``, why, or
        None) and ``passed``.

    Raises:
        UserError: There is no such network, it does not run on such images, or it draws random
            numbers.
    """
    from trajmatch import networks, ops

    try:
        spec = networks.specify(text, in_channels, num_classes, image_size)
        model = networks.build_student(spec)
        layers = networks.examine(model, (in_channels, image_size, image_size))
    except ValueError as error:
        raise UserError(f"--network {text}: {error}") from error
    engine = ops.engine_for(model)
    return {
        "network": spec,
        "parameters": networks.num_parameters(model),
        "runs_by": engine,
        "layers": [
            {
                "name": layer.name,
                "type": layer.type,
                "parameters": layer.parameters,
                "runs": engine if layer.obstacle is None else NOT_TWICE,
                "obstacle": layer.obstacle,
            }
            for layer in layers
        ],
        "passed": all(layer.obstacle is None for layer in layers),
    }


def network_as_text(report: dict[str, Any]) -> str:
    """The report for a reader."""
    spec, layers = report["network"], report["layers"]
    options = ", ".join(f"{name} {value}" for name, value in spec.items() if name != "name")
    names = [layer["name"] or "(the network itself)" for layer in layers]
    width = max(len("layer"), *map(len, names))
    types = max(len("type"), *(len(layer["type"]) for layer in layers))
    lines = [
        f"{spec['name']}: {options}; {report['parameters']:,} parameters",
        "",
        f"{'layer':{width}}  {'type':{types}}  parameters  runs by",
    ]
    for name, layer in zip(names, layers, strict=True):
        why = f": {layer['obstacle']}" if layer["obstacle"] else ""
        lines.append(
            f"{name:{width}}  {layer['type']:{types}}  {layer['parameters']:10,}  "
            f"{layer['runs']}{why}"
        )
    verdict = (
        f"It can be expert, student and evaluation network; steps run by: {report['runs_by']}."
        if report["passed"]
        else "It can be tested but not distilled: replace what is not twice differentiable."
    )
    return "\n".join([*lines, "", verdict])
