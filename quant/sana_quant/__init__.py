"""Mixed precision of the transformer: groups of layers, policies over them, and what a policy costs."""
