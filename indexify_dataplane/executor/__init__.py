"""The node's side of a function executor: the process that runs users' functions inside a function container."""
