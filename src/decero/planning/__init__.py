"""What a run will cost: operations, memory, time; and what fits in a budget of time."""
