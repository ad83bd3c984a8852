"""Registration of fake and autograd implementations for the operators that C++ declares."""

from collections.abc import Callable
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, peek_interpreter_stack

from trajmatch import _extension  # noqa: F401  registers the operators

#: All registered operators, by name. Unlike the operators in ``torch.ops.trajmatch``, they can be
#: called inside ``torch.func.grad`` and ``torch.func.vjp``.
operators = SimpleNamespace()


def by_reference(function: str) -> str:
    """Return the advice to differentiate a function of :mod:`trajmatch.reference` instead."""
    return f"trajmatch.reference.{function} has derivatives of any order"


def register(
    name: str,
    fake: Callable[[Any], Any],
    backward: Callable[..., tuple[Tensor | None, ...]] | None = None,
    *,
    save: str = "",
    outputs: str = "",
    constant: str = "",
    materialize: bool = True,
    instead: str = "",
) -> None:
    """Register the fake and autograd implementations of ``trajmatch::name``.

    Args:
        name: Name of the operator.
        fake: Function that takes an object with the inputs as attributes, and returns empty
            outputs.
        backward: Function that takes an object and the gradient of each output, and returns the
            gradients of the inputs. The object's attributes are the tensors named in ``save``, the
            inputs that are not tensors, and ``choices``, a tuple of the inputs that are not
            tensors. None makes differentiation an error.
        save: Names of the input and output tensors that ``backward`` uses, separated by spaces.
        outputs: Names of all outputs, in order.
        constant: Names of the outputs without gradient.
        materialize: False to pass None instead of zeros for the gradient of an unused output.
        instead: Advice for the error message if ``backward`` is None.
    """
    operator = getattr(torch.ops.trajmatch, name)
    schema = operator.default._schema
    defaults = {each.name: each.default_value for each in schema.arguments}
    others = [each.name for each in schema.arguments if "Tensor" not in str(each.type)]

    # Inputs by name. PyTorch leaves out trailing inputs that have their default value.
    def bound(inputs: tuple[Any, ...]) -> dict[str, Any]:
        return defaults | dict(zip(defaults, inputs, strict=False))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        values = bound(inputs) | dict(zip(outputs.split(), results, strict=False))
        ctx.mark_non_differentiable(*(values[each] for each in constant.split()))
        ctx.set_materialize_grads(materialize)
        ctx.save_for_backward(*(values[each] for each in save.split()))
        # save_for_backward takes tensors only.
        ctx.others = {each: values[each] for each in others}

    def differentiate(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        if backward is None:
            raise NotImplementedError(f"trajmatch::{name} is not differentiable; {instead}")
        tensors = dict(zip(save.split(), ctx.saved_tensors, strict=True))
        choices = tuple(ctx.others.values())
        grads = backward(SimpleNamespace(**tensors, **ctx.others, choices=choices), *above)
        # `backward` may leave out the gradients of the last inputs; zip_longest adds None for them.
        pairs = zip_longest(grads, ctx.needs_input_grad)
        return tuple(grad if needed else None for grad, needed in pairs)

    qualified = f"trajmatch::{name}"
    torch.library.register_fake(qualified, lambda *inputs: fake(SimpleNamespace(**bound(inputs))))
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
            return operator(*inputs)
        # Only grad and vjp need the node below; the operator handles or refuses other transforms.
        if peek_interpreter_stack().key() != TransformType.Grad:
            return operator(*inputs)
        return node.apply(*inputs)

    # torch.func transforms only autograd functions with a separate setup_context. The node that
    # register_autograd makes takes the context in its forward, so torch.func gets another node.
    parts = {"forward": operator, "setup_context": setup_context, "backward": differentiate}
    methods = {key: staticmethod(part) for key, part in parts.items()}
    node: Any = type(f"{name}_node", (torch.autograd.Function,), methods)
    setattr(operators, name, call)
