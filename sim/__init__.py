"""A backend whose expectations are exact: tiny MoE policies whose every response can be enumerated."""
