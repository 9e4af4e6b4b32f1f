"""How well generators do: against laws that are known, and against pictures."""
