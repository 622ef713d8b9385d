"""(table, budget) to plan."""
