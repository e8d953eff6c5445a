"""What an algorithm is: policies seen through log-probabilities, routes, weights, recipes and diagnostics."""
