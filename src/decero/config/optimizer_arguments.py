"""Check the arguments that a user gives an optimizer class."""

from typing import Any, Literal

OptimizerName = Literal["adamw", "adam", "sgd", "momentum", "rmsprop", "adafactor", "muon", "schedule_free_adamw"]
SHARES = ("momentum", "dampening", "alpha")  # arguments of optimizers from 0 to 1
SWITCHES = ("amsgrad", "maximize", "foreach", "fused", "centered", "nesterov")  # arguments that are true or false
LISTS = {"betas": (2, "two"), "eps": (2, "two"), "ns_coefficients": (3, "three")}  # that may be several numbers
WORDS = {"adjust_lr_fn": ("original", "match_rms_adamw")}  # of Muon


def check_optimizer_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments. Raises ValueError for a value that no optimizer can use.

    Optimizers check some ranges, but accept an infinite eps, a momentum of 1e300 or a list as dampening.
    """
    for name, value in arguments.items():
        if name in SWITCHES and not isinstance(value, bool | None):
            raise ValueError(f"optim.arguments.{name} is {value}; give true, false or null")
        if name in WORDS:
            if value not in WORDS[name]:
                raise ValueError(f"optim.arguments.{name} is {value}; give {' or '.join(WORDS[name])}")
            continue
        if name == "ns_steps" and not (isinstance(value, int) and 1 <= value < 100):
            raise ValueError(f"optim.arguments.ns_steps is {value}; give a whole number from 1 to 99")
        low, high = (0, 1) if name in SHARES else (-1000, 1000)
        size, word = LISTS.get(name, (0, ""))
        numbers = value if isinstance(value, list) and len(value) == size else [value]
        for number in numbers:
            if not isinstance(number, int | float | None):
                several = f" or {word} of them in a list" if word else ""
                raise ValueError(f"optim.arguments.{name} is {value}; give a number{several}, true, false or null")
            if number is not None and not low <= number <= high:  # also for NaN
                raise ValueError(f"optim.arguments.{name} is {number}; give a number from {low} to {high}")
    return arguments
